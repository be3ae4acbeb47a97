package cli

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/checkpoint"
)

// checkpointFlags are --checkpoint and --resume.
type checkpointFlags struct {
	dir    string
	resume bool
}

func (f *transferFlags) addCheckpoint() {
	f.set.StringVar(&f.checkpoint.dir, "checkpoint", "", "")
	f.set.BoolVar(&f.checkpoint.resume, "resume", false, "")
}

// checkCheckpoint refuses what cannot be gone on with.
func (f *transferFlags) checkCheckpoint(from, to *pump.Target) error {
	switch {
	case f.checkpoint.resume && f.checkpoint.dir == "":
		return f.usage("--resume goes on from a checkpoint: give its folder with --checkpoint")
	case f.checkpoint.dir == "":
		if f.given("checkpoint") {
			return f.usage("--checkpoint needs the name of a folder")
		}
		return nil
	case fromStdin(from):
		return f.usage("--checkpoint: standard input cannot be read again from where a run ended; write it to a file first")
	case toStdout(to):
		return f.usage("--checkpoint: standard output cannot be gone on with; write to a file")
	}
	return nil
}

// fromStdin says whether a built-in source reads standard input.
func fromStdin(t *pump.Target) bool {
	return t.Scheme == "stdin" || t.Scheme == "-" || (t.Scheme == "jsonl" || t.Scheme == "csv") && strings.TrimPrefix(t.Rest, "//") == "-"
}

// openCheckpoint opens the folder for this copy.
func (t *transfer) openCheckpoint(ctx context.Context, source pump.Source, sink pump.Sink) (*checkpoint.Folder, error) {
	belongs, err := t.belongs(ctx, source, sink)
	if err != nil {
		return nil, err
	}
	return checkpoint.Open(t.flags.checkpoint.dir, belongs, t.flags.checkpoint.resume)
}

// belongs says what decides what is copied where, without secrets (invariant 9).
// Settings and -t are not among it: they may change from run to run.
func (t *transfer) belongs(ctx context.Context, source pump.Source, sink pump.Sink) ([]checkpoint.Field, error) {
	from, err := endField(ctx, "the source", t.from, source)
	if err != nil {
		return nil, err
	}
	to, err := endField(ctx, "the destination", t.to, sink)
	if err != nil {
		return nil, err
	}
	fields := []checkpoint.Field{from, to}
	if v, ok := pump.As[pump.Volatile](sink); ok {
		life, err := v.Life(ctx)
		if err != nil {
			return nil, err
		}
		if life != "" {
			// What was confirmed in another one may have been forgotten.
			fields = append(fields, checkpoint.Field{Name: "the destination's history", Value: life, Shown: life})
		}
	}
	for _, end := range []*pump.Resolved{t.from, t.to} {
		given := end.Given()
		for _, name := range slices.Sorted(maps.Keys(given)) {
			fields = append(fields, checkpoint.Field{Name: fmt.Sprintf("the %s's option %s", sideName(end), name), Value: given[name]})
		}
	}
	f := t.flags
	if t.vbuckets != nil {
		list := pump.FormatVBuckets(t.vbuckets)
		fields = append(fields, checkpoint.Field{Name: "the list of vbuckets", Value: list, Shown: list})
	}
	if f.key != "" {
		fields = append(fields, checkpoint.Field{Name: "-k/--key", Value: f.key})
	}
	if f.singleNode {
		fields = append(fields, checkpoint.Field{Name: "--single-node", Value: "true"})
	}
	return fields, nil
}

func sideName(end *pump.Resolved) string {
	if end.Target.Role == pump.RoleSink {
		return "destination"
	}
	return "source"
}

// endField says what one end is: the bucket's uuid where there is one, so that
// another address of the same cluster will do, and a bucket that was made anew
// will not.
func endField(ctx context.Context, name string, r *pump.Resolved, end any) (checkpoint.Field, error) {
	f := checkpoint.Field{Name: name, Shown: endText(r)}
	if i, ok := pump.As[pump.Identifier](end); ok {
		id, err := i.Identity(ctx)
		if err != nil {
			return f, err
		}
		if id.UUID != "" {
			f.Value = "bucket uuid " + id.UUID
		} else {
			f.Value = fmt.Sprintf("bucket %q at %s", id.Bucket, strings.Join(id.KV, ","))
		}
		return f, nil
	}
	t := &r.Target
	f.Value = r.Plugin.Schemes[0] + ":" + t.Rest
	if !strings.HasPrefix(t.Rest, "//") && t.Rest != "" {
		path, err := filepath.Abs(t.Rest)
		if err != nil {
			return f, fmt.Errorf("find out where %s is: %w", f.Shown, err)
		}
		f.Value = r.Plugin.Schemes[0] + ":" + path
	}
	return f, nil
}

// alreadyDone says what a finished checkpoint says, as a report.
func (t *transfer) alreadyDone(counts pump.Counts) error {
	t.report, t.over = &pump.Report{Earlier: counts}, true
	t.say.Notice("the checkpoint says that this copy is complete; nothing is left to do")
	return t.report.Result()
}

// resumeHint is what to do after a run that did not come to its end.
func (t *transfer) resumeHint(err error) error {
	if err == nil || t.flags.checkpoint.dir == "" || t.report == nil {
		return err
	}
	switch pump.ClassOf(err) {
	case pump.ClassUsage, pump.ClassPartial:
		return err
	}
	hints := ownHints(err)
	hint := "The progress is saved: run the same command again with --resume, and it goes on from there."
	switch {
	case slices.ContainsFunc(hints, func(h string) bool { return strings.Contains(h, "--resume") }):
		return err
	case t.whole:
		hint = "The destination counts only as a whole, so nothing of it is saved: run the same command again, and it begins anew."
	case t.report.Read+t.report.Earlier.Done == 0:
		return err
	}
	return &pump.Error{Class: pump.ClassOf(err), Code: pump.CodeOf(err), Err: err, Hint: strings.Join(append(hints, hint), "\n")}
}
