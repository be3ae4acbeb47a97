// Package plugins is the one visible list of what is built in.
//
// A command of one's own starts from Transfer and registers more:
//
//	registry, err := plugins.Transfer()
//	if err == nil {
//		err = pump.RegisterSink(registry, mySink)
//	}
package plugins

import (
	"errors"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/recovery"
	sinkdcp "github.com/cbpump/cbpump/sinks/dcp"
	sinkfile "github.com/cbpump/cbpump/sinks/file"
	sinkcsv "github.com/cbpump/cbpump/sinks/file/csv"
	sinkdocs "github.com/cbpump/cbpump/sinks/file/docs"
	sinkjsonl "github.com/cbpump/cbpump/sinks/file/jsonl"
	sinktext "github.com/cbpump/cbpump/sinks/file/textproto"
	"github.com/cbpump/cbpump/sinks/mc"
	"github.com/cbpump/cbpump/sinks/null"
	sinktap "github.com/cbpump/cbpump/sinks/tap"
	"github.com/cbpump/cbpump/sources/auto"
	sourcedcp "github.com/cbpump/cbpump/sources/dcp"
	sourcefile "github.com/cbpump/cbpump/sources/file"
	sourcecsv "github.com/cbpump/cbpump/sources/file/csv"
	sourcedocs "github.com/cbpump/cbpump/sources/file/docs"
	sourcejsonl "github.com/cbpump/cbpump/sources/file/jsonl"
	sourcetext "github.com/cbpump/cbpump/sources/file/textproto"
	"github.com/cbpump/cbpump/sources/gen"
	sourcetap "github.com/cbpump/cbpump/sources/tap"
)

// Transfer returns a new registry with every built-in source and sink: what
// cbtransfer has.
func Transfer() (*pump.Registry, error) {
	r := &pump.Registry{}
	return r, errors.Join(
		pump.RegisterSource(r, auto.Plugin()),
		pump.RegisterSource(r, oneNodeTap()),
		pump.RegisterSource(r, sourcedcp.Plugin()),
		pump.RegisterSource(r, gen.Plugin()),
		pump.RegisterSource(r, sourcefile.Plugin()),
		pump.RegisterSource(r, sourcejsonl.Plugin()),
		pump.RegisterSource(r, sourcecsv.Plugin()),
		pump.RegisterSource(r, sourcedocs.Plugin()),
		pump.RegisterSource(r, sourcetext.Plugin()),
		pump.RegisterSink(r, mc.Plugin()),
		pump.RegisterSink(r, mc.CBPlugin()),
		pump.RegisterSink(r, sinktap.Plugin()),
		pump.RegisterSink(r, sinkdcp.Plugin()),
		pump.RegisterSink(r, null.Plugin()),
		pump.RegisterSink(r, sinkfile.Plugin()),
		pump.RegisterSink(r, sinkjsonl.Plugin()),
		pump.RegisterSink(r, sinkcsv.Plugin()),
		pump.RegisterSink(r, sinkdocs.Plugin()),
		pump.RegisterSink(r, sinktext.Plugin()),
	)
}

// oneNodeTap is the TAP source for tap://host:port; clusters go by auto.
func oneNodeTap() pump.SourcePlugin[sourcetap.Options] {
	p := sourcetap.Plugin()
	p.Schemes = []string{"tap"}
	p.Summary = "dumps the vbuckets that are active on one node over TAP (tap://host:11210); servers up to 4.6"
	return p
}

// Recovery returns a new registry with the two ends of cbrecovery, whole clusters
// both, since one node alone has no map to recover by.
func Recovery() (*pump.Registry, error) {
	r := &pump.Registry{}
	return r, errors.Join(pump.RegisterSource(r, recovery.SourcePlugin()), pump.RegisterSink(r, recovery.SinkPlugin()))
}
