package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cbpump/cbpump/internal/deadletter"
	"github.com/cbpump/cbpump/pump"
)

// transferFlags are the flags of cbtransfer.
type transferFlags struct {
	*common
	id          string
	key         string
	operation   string
	singleNode  bool
	listPlugins bool
	deadLetters string
	maxRejected uint64
	checkpoint  checkpointFlags
	compare     compareFlags
}

func newTransferFlags(name string) *transferFlags {
	f := &transferFlags{common: newCommon(name)}
	s := f.set
	s.StringVarP(&f.bucketSource, "bucket-source", "b", "default", "")
	s.StringVarP(&f.bucketDestination, "bucket-destination", "B", "", "")
	s.StringVarP(&f.id, "id", "i", "", "")
	s.StringVar(&f.vbuckets, "vbucket-list", "", "")
	s.StringVarP(&f.key, "key", "k", "", "")
	s.BoolVar(&f.singleNode, "single-node", false, "")
	s.StringVar(&f.operation, "destination-operation", "", "")
	f.addShared()
	f.addDeadLetters()
	f.addCheckpoint()
	f.addCompare()
	s.BoolVar(&f.listPlugins, "list-plugins", false, "")
	return f
}

// Transfer is the command cbtransfer with the plugins of r. It returns the exit
// code.
func Transfer(ctx context.Context, r *pump.Registry, p *Process) int {
	f := newTransferFlags(p.Name)
	say, over, code := begin(p, f.common, r, transferHelp)
	if over {
		return code
	}
	if f.listPlugins {
		return listPlugins(say, p, r, f.json)
	}
	job := &transfer{say: say, flags: f}
	work, stop, release := guard(ctx, p, say)
	defer release()
	stop.showStatus(job.status)
	err := job.prepare(p, r)
	if err == nil {
		beside := int64(0)
		if job.compare != nil {
			beside = int64(job.compare.memory)
		}
		defer memoryLimit(p, job.settings.Memory, beside)()
	}
	switch {
	case err != nil:
	case f.onlyCompares():
		err = job.compare.run(work, stop.Stop)
	default:
		err = f.profiled(func() error { return job.run(work, stop.Stop) })
	}
	if r := job.report; r != nil && !nobodyReads(err) {
		say.Clear()
		if !job.over && (err == nil || r.Read+r.Filtered > 0) {
			say.Print("%s", reportText(r))
		}
		failedStreams(say, r)
		err = job.verify(work, stop.Stop, err)
	}
	return finish(say, err, stop.signal(), job.result)
}

// transfer is one run of cbtransfer.
type transfer struct {
	say   *console
	flags *transferFlags

	from, to    *pump.Resolved
	settings    pump.Settings
	filter      func(*pump.Item) bool
	report      *pump.Report
	dryRunFound pump.Estimate
	monitor     pump.Monitor
	comparing   atomic.Pointer[comparison] // the comparison that is under way
	dead        *deadletter.File           // nil: rejected items are not kept
	vbuckets    []uint16                   // nil: all
	whole       bool                       // the destination counts only as a whole
	over        bool                       // an earlier run has done everything
	compare     *comparison                // nil: nothing is compared
}

// prepare turns the flags into a source, a sink and settings; it contacts nobody.
func (t *transfer) prepare(p *Process, r *pump.Registry) error {
	f := t.flags
	source, sink, err := f.ends()
	if err != nil {
		return err
	}
	vbuckets, err := f.vbucketFilter()
	if err != nil {
		return err
	}
	t.vbuckets = vbuckets
	if t.filter, err = itemFilter(f.key, vbuckets); err != nil {
		return err
	}
	extras, err := parseExtras(f.extras)
	if err != nil {
		return err
	}
	log := t.say.logger(f.verbose)
	env := pump.Env{
		Bucket: f.bucketSource, VBuckets: vbuckets, SingleNode: f.singleNode, Threads: f.threads, Log: log.Named("source"),
	}
	if t.from, err = r.Resolve(pump.RoleSource, source, env); err != nil {
		return err
	}
	env.Bucket, env.Log = f.bucketDestination, log.Named("sink")
	if env.Bucket == "" {
		env.Bucket = f.bucketSource
	}
	if t.to, err = r.Resolve(pump.RoleSink, sink, env); err != nil {
		return err
	}
	if err := f.login(p, t.say, t.from, t.to, true); err != nil {
		return err
	}
	if err := f.secure(t.say, t.from, t.to); err != nil {
		return err
	}
	t.settings = pump.DefaultSettings()
	if err := pump.AssignOptions(extras, t.from, t.to, &t.settings); err != nil {
		return err
	}
	if f.operation != "" {
		const name = "operation"
		if !declares(t.to.Plugin, name) {
			return f.usage("--destination-operation: the sink %s has no choice of operations", t.to.Target.Scheme)
		}
		t.to.Set(name, f.operation)
	}
	if f.json && toStdout(&t.to.Target) {
		return f.usage("--json and the destination both write to standard output")
	}
	if err := f.checkCheckpoint(&t.from.Target, &t.to.Target); err != nil {
		return err
	}
	if t.compare, err = t.prepareCompare(r); err != nil {
		return err
	}
	return refuseSame(t.from, t.to)
}

// toStdout says whether a built-in destination writes to standard output.
func toStdout(t *pump.Target) bool {
	return t.Scheme == "stdout" || t.Scheme == "-" || (t.Scheme == "jsonl" || t.Scheme == "csv") && strings.TrimPrefix(t.Rest, "//") == "-"
}

// run opens both ends and moves the items, or only looks at both ends.
func (t *transfer) run(ctx context.Context, stop <-chan struct{}) error {
	limits, unwatch, err := t.flags.startLimits(t.say)
	if err != nil {
		return err
	}
	defer unwatch()
	source, err := t.from.OpenSource(ctx)
	if err != nil {
		return err
	}
	sink, err := t.to.OpenSink(ctx)
	if err != nil {
		_ = source.Close() // nothing was read; the sink's error is what matters
		return err
	}
	if t.flags.dryRun {
		return t.dryRun(ctx, source, sink)
	}
	say := t.say
	say.Print("%s: %s to %s", say.name, endText(t.from), endText(t.to))
	_, t.whole = pump.As[pump.Committer](sink)
	var keep pump.Checkpoint
	if t.flags.checkpoint.dir != "" {
		folder, err := t.openCheckpoint(ctx, source, sink)
		if err != nil {
			return errors.Join(err, source.Close(), sink.Close())
		}
		defer folder.Close() // the lock; what was saved is durable already
		if counts, finished := folder.Finished(); finished {
			return errors.Join(t.alreadyDone(counts), source.Close(), sink.Close())
		}
		if t.flags.checkpoint.resume {
			say.Notice("going on from the checkpoint in %s", quoteText(t.flags.checkpoint.dir))
		}
		keep = folder
	}
	if t.dead, err = t.openDeadLetters(); err != nil {
		return errors.Join(err, source.Close(), sink.Close())
	}
	var meter meter
	cfg := pump.Config{
		Source: source, Sink: sink, Settings: t.settings, Threads: t.flags.threads,
		Filter: t.filter, Log: say.logger(t.flags.verbose).Named("pump"), Stop: stop, KeepGoing: true,
		Checkpoint:    keep,
		ProgressEvery: say.every(),
		Progress: func(s pump.Snapshot) {
			r := meter.feed(&s)
			say.Status(progressText(&s, r))
			say.Emit(progressOf(&s, r))
		},
	}
	if say.out != nil && !say.silent {
		cfg.OnVerdict = func(it *pump.Item, v pump.Verdict, why error) {
			if v == pump.Rejected {
				say.Emit(rejectedOf(it.Op, it.VBucket, it.Key, why))
			}
		}
	}
	cfg.Limits, cfg.Monitor = limits, &t.monitor
	t.keepRejected(&cfg)
	t.report, err = pump.Run(ctx, cfg)
	if r := t.report; err == nil && r.Read == 0 && r.Filtered > 0 {
		say.Warn(fmt.Sprintf("all %s items were left out: -k matches no key, or the source does not say which vbucket an item is in", grouped(r.Filtered)))
	}
	return t.closeDeadLetters(t.resumeHint(t.brief(err)))
}

func (t *transfer) dryRun(ctx context.Context, source pump.Source, sink pump.Sink) (err error) {
	defer func() {
		if cerr := source.Close(); err == nil {
			err = cerr
		}
		if cerr := sink.Close(); err == nil {
			err = cerr
		}
	}()
	if err := pump.Check(ctx, source, sink); err != nil {
		return err
	}
	size := "everything (the source does not say how much)"
	if e, ok := pump.As[pump.Estimator](source); ok {
		if t.dryRunFound, err = e.Estimate(ctx); err != nil {
			return err
		}
		size = grouped(t.dryRunFound.Items) + " items"
	}
	t.say.Print("%s: dry run: both ends can be used; would copy %s from %s to %s", t.say.name, size, endText(t.from), endText(t.to))
	return nil
}

// vbucketFilter reads -i and --vbucket-list.
func (f *transferFlags) vbucketFilter() ([]uint16, error) {
	switch {
	case f.given("id") && f.given("vbucket-list"):
		return nil, f.usage("-i and --vbucket-list both choose vbuckets; give one of them")
	case f.given("id"):
		list, err := pump.ParseVBuckets(f.id)
		if err != nil || len(list) != 1 {
			return nil, f.usage("-i/--id takes one vbucket, a number from 0 to %d; --vbucket-list takes several", pump.NoVBucket-1)
		}
		return list, nil
	case f.given("vbucket-list"):
		return pump.ParseVBuckets(f.vbuckets)
	}
	return nil, nil
}

// itemFilter chooses items by key and vbucket; nil chooses all. A source is told
// the vbuckets too, so that it need not read the others.
func itemFilter(key string, vbuckets []uint16) (func(*pump.Item) bool, error) {
	if key == "" && vbuckets == nil {
		return nil, nil
	}
	re, err := regexp.Compile(key)
	if err != nil {
		return nil, &pump.Error{
			Class: pump.ClassUsage, Code: "usage", Op: "-k/--key", Err: err,
			Hint: "It is a regular expression in RE2 syntax, found anywhere in the key; ^ and $ tie it to begin and end.",
		}
	}
	return func(it *pump.Item) bool {
		if vbuckets != nil {
			if _, found := slices.BinarySearch(vbuckets, it.VBucket); !found {
				return false
			}
		}
		return key == "" || re.Match(it.Key)
	}, nil
}

// endText names one end of a transfer.
func endText(r *pump.Resolved) string {
	name := r.Target.Name()
	if serverOf(&r.Target).bucket {
		name += fmt.Sprintf(" (bucket %s)", r.Target.Bucket)
	}
	return quoteText(name)
}

// resultLine ends the lines of cbtransfer --json.
type resultLine struct {
	Type     string `json:"type"` // "result"
	Command  string `json:"command"`
	ExitCode int    `json:"exit_code"`
	DryRun   bool   `json:"dry_run"`
	counters
	Total   uint64         `json:"items_total"`
	Causes  []causeField   `json:"causes"`
	Streams []streamField  `json:"streams"`
	LeftOut []leftOutField `json:"definitions_left_out"`
	Losses  []lossField    `json:"parts_left_out"`
	// DeadLetters is the file with the rejected items, "" if there is none.
	DeadLetters string       `json:"dead_letters"`
	Earlier     pump.Counts  `json:"earlier_runs"`
	Verify      *verifyField `json:"verify,omitempty"`
}

func (t *transfer) result(code int) any {
	l := resultLine{Type: "result", Command: "cbtransfer", ExitCode: code, DryRun: t.flags.dryRun, Total: t.dryRunFound.Items}
	r := t.report
	if r == nil {
		r = &pump.Report{}
	}
	if t.report != nil {
		l.Total = r.Estimate.Items
	}
	l.counters, l.Causes, l.Streams = countersOf(r.Snapshot), causesOf(r), streamsOf(r)
	l.LeftOut, l.Losses, l.Earlier = leftOutOf(r), lossesOf(r), r.Earlier
	if l.Verify = t.compare.field(); t.flags.onlyCompares() {
		l.Command += " " + compareWord
	}
	if t.dead != nil && t.dead.Len() > 0 {
		l.DeadLetters = t.dead.Path()
	}
	return l
}
