package cli

import (
	"fmt"
	"strings"

	"github.com/cbpump/cbpump/pump"
)

type pluginField struct {
	Schemes    []string      `json:"schemes"`
	Extensions []string      `json:"extensions"`
	Summary    string        `json:"summary"`
	Doc        string        `json:"doc,omitempty"`
	Options    []optionField `json:"options"`
}

type optionField struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Default string   `json:"default"`
	Enum    []string `json:"enum,omitempty"`
	Secret  bool     `json:"secret,omitempty"`
	Help    string   `json:"help"`
}

// pluginList is what --list-plugins --json prints: one object.
type pluginList struct {
	Type    string        `json:"type"` // "plugins"
	Sources []pluginField `json:"sources"`
	Sinks   []pluginField `json:"sinks"`
	Engine  []optionField `json:"engine"`
}

func optionFields(opts []pump.Option) []optionField {
	list := []optionField{}
	for _, o := range opts {
		list = append(list, optionField{o.Name, o.Type, o.Default, o.Enum, o.Secret, o.Help})
	}
	return list
}

func listOf(r *pump.Registry) (pluginList, error) {
	l := pluginList{Type: "plugins", Sources: []pluginField{}, Sinks: []pluginField{}}
	for role, into := range map[pump.Role]*[]pluginField{pump.RoleSource: &l.Sources, pump.RoleSink: &l.Sinks} {
		for _, p := range r.Plugins(role) {
			*into = append(*into, pluginField{
				Schemes: append([]string{}, p.Schemes...), Extensions: append([]string{}, p.Extensions...),
				Summary: p.Summary, Doc: p.Doc, Options: optionFields(p.Options),
			})
		}
	}
	engine, err := pump.DescribeOptions(pump.Settings{})
	l.Engine = optionFields(engine)
	return l, err
}

// pluginText is --list-plugins for people, made of the plugins' own declarations.
func pluginText(r *pump.Registry) (string, error) {
	l, err := listOf(r)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, role := range []struct {
		title   string
		plugins []pluginField
	}{{"Sources", l.Sources}, {"Sinks", l.Sinks}} {
		fmt.Fprintf(&b, "%s\n", role.title)
		for _, p := range role.plugins {
			names := make([]string, 0, len(p.Schemes)+len(p.Extensions))
			for _, s := range p.Schemes {
				if s != "-" {
					s += ":"
				}
				names = append(names, s)
			}
			for _, e := range p.Extensions {
				names = append(names, "*"+e)
			}
			fmt.Fprintf(&b, "\n  %s\n      %s\n", strings.Join(names, " "), p.Summary)
			if p.Doc != "" {
				b.WriteByte('\n')
				for _, par := range strings.Split(strings.TrimSpace(p.Doc), "\n\n") {
					b.WriteString(wrap(strings.Join(strings.Fields(par), " "), 6, 78))
				}
			}
			optionText(&b, p.Options)
		}
		b.WriteByte('\n')
	}
	b.WriteString("Engine\n\n      Options of every transfer.\n")
	optionText(&b, l.Engine)
	b.WriteString("\nOptions are given as -x name=value, or behind the address: scheme://host?name=value&name=value.\n" +
		"One that source and sink both have is written -x source.name=value or -x sink.name=value.\n")
	return b.String(), nil
}

func optionText(b *strings.Builder, opts []optionField) {
	if len(opts) > 0 {
		b.WriteByte('\n')
	}
	for _, o := range opts {
		head := fmt.Sprintf("%s (%s", o.Name, o.Type)
		if len(o.Enum) > 0 {
			head = fmt.Sprintf("%s (%s", o.Name, strings.Join(o.Enum, "|"))
		}
		if o.Default != "" {
			head += ", default " + o.Default
		}
		if o.Secret {
			head += ", secret"
		}
		fmt.Fprintf(b, "      %s)\n%s", head, wrap(o.Help, 12, 78))
	}
}

// wrap breaks a text into lines of at most width columns, indented.
func wrap(text string, indent, width int) string {
	var b strings.Builder
	col := 0
	for _, w := range strings.Fields(text) {
		n := len([]rune(w))
		switch {
		case col == 0:
			b.WriteString(strings.Repeat(" ", indent))
			col = indent
		case col+1+n > width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			col = indent
		default:
			b.WriteByte(' ')
			col++
		}
		b.WriteString(w)
		col += n
	}
	if col > 0 {
		b.WriteByte('\n')
	}
	return b.String()
}

// listPlugins prints the plugins and returns the exit code.
func listPlugins(say *console, p *Process, r *pump.Registry, asJSON bool) int {
	text, err := pluginText(r)
	if asJSON {
		var l pluginList
		if l, err = listOf(r); err == nil {
			say.Emit(l)
			return finish(say, nil, 0, nil)
		}
	}
	if err != nil {
		return finish(say, err, 0, nil)
	}
	return printed(say, p, text)
}
