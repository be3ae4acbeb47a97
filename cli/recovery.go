package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/spf13/pflag"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/compare"
	"github.com/cbpump/cbpump/recovery"
)

// recoveryFlags are the flags of cbrecovery.
type recoveryFlags struct {
	*common
	addNode    string
	removeNode string
	api        string
	resume     bool
	checkpoint string
	transfer   string
	verify     string
}

func newRecoveryFlags(name string) *recoveryFlags {
	f := &recoveryFlags{common: newCommon(name)}
	s := f.set
	s.StringVarP(&f.bucketSource, "bucket-source", "b", "default", "")
	s.StringVarP(&f.bucketDestination, "bucket-destination", "B", "default", "")
	s.StringVarP(&f.vbuckets, "vbucket-list", "l", "", "")
	s.StringVarP(&f.addNode, "add-node", "a", "", "")
	s.StringVarP(&f.removeNode, "remove-node", "r", "", "")
	s.StringVar(&f.api, "recovery-api", recovery.APIAuto, "")
	s.BoolVar(&f.resume, "resume", false, "")
	s.StringVar(&f.checkpoint, "checkpoint", "", "")
	s.StringVar(&f.transfer, "transfer", recovery.TransferAuto, "")
	s.StringVar(&f.verify, "verify", string(compare.Digest), "")
	f.addShared()
	return f
}

// Recovery is the command cbrecovery with the source and the sink of r. It
// returns the exit code.
func Recovery(ctx context.Context, r *pump.Registry, p *Process) int {
	f := newRecoveryFlags(p.Name)
	say, over, code := begin(p, f.common, r, recoveryHelp)
	if over {
		return code
	}
	work, stop, release := guard(ctx, p, say)
	defer release()
	job := &recoveryJob{say: say, flags: f, registry: r, result: &recovery.Result{}}
	opt, err := job.prepare(p, r)
	var unwatch func()
	if err == nil {
		opt.Limits, unwatch, err = f.startLimits(say)
	}
	if err == nil {
		defer unwatch()
		defer memoryLimit(p, opt.Settings.Memory, recovery.VerifyMemory)()
		opt.Stop, opt.Monitor = stop.Stop, &pump.Monitor{}
		stop.showStatus(func() string { return job.status(opt.Monitor) })
		err = f.profiled(func() (err error) {
			job.result, err = recovery.Run(work, opt)
			return err
		})
		say.Clear()
		job.summary()
	}
	code = finish(say, err, stop.signal(), job.resultLine)
	if len(job.result.Outcomes) > 0 {
		say.Print("%s", job.next())
	}
	return code
}

// recoveryJob is one run of cbrecovery.
type recoveryJob struct {
	say      *console
	flags    *recoveryFlags
	registry *pump.Registry
	result   *recovery.Result
	meter    meter
	phase    atomic.Value // recovery.Phase: the one under way
}

// prepare turns the flags into the options of a recovery; it contacts nobody.
func (j *recoveryJob) prepare(p *Process, r *pump.Registry) (opt recovery.Options, err error) {
	f := j.flags
	from, to, err := f.positional("restore_from", "restore_to")
	if err != nil {
		return opt, err
	}
	switch {
	case f.addNode != "" && f.removeNode == "":
		return opt, f.usage("-a/--add-node also needs -r/--remove-node: the node that failed and that the new one replaces")
	case f.removeNode != "" && f.addNode == "":
		return opt, f.usage("-r/--remove-node also needs -a/--add-node: the node that takes its place")
	case f.given("add-node") && f.addNode == "":
		return opt, f.usage("-a/--add-node and -r/--remove-node must not be empty")
	}
	if f.given("vbucket-list") {
		if opt.VBuckets, err = pump.ParseVBuckets(f.vbuckets); err != nil {
			return opt, err
		}
	}
	extras, err := parseExtras(f.extras)
	if err != nil {
		return opt, err
	}
	source, err := r.Resolve(pump.RoleSource, from, pump.Env{Bucket: f.bucketSource})
	if err != nil {
		return opt, err
	}
	sink, err := r.Resolve(pump.RoleSink, to, pump.Env{Bucket: f.bucketDestination})
	if err != nil {
		return opt, err
	}
	// The source's password is never sent to the destination: two clusters, two
	// owners.
	if err := f.login(p, j.say, source, sink, false); err != nil {
		return opt, err
	}
	if err := f.secure(j.say, source, sink); err != nil {
		return opt, err
	}
	opt.Settings = pump.DefaultSettings()
	if err := pump.AssignOptions(extras, source, sink, &opt.Settings); err != nil {
		return opt, err
	}
	if err := refuseSame(source, sink); err != nil {
		return opt, err
	}
	if err := errors.Join(source.Decode(&opt.SourceOptions), sink.Decode(&opt.SinkOptions)); err != nil {
		return opt, err
	}
	opt.Source, opt.Destination = endpointOf(source), endpointOf(sink)
	opt.Resume, opt.Transfer, opt.Checkpoint = f.resume, f.transfer, f.checkpoint
	opt.API, opt.AddNode, opt.RemoveNode, opt.DryRun = f.api, f.addNode, f.removeNode, f.dryRun
	opt.Threads, opt.Log, opt.OnEvent = f.threads, j.say.logger(f.verbose), j.event
	opt.Timing.ProgressBy = j.say.every()
	return opt, nil
}

func endpointOf(r *pump.Resolved) recovery.Endpoint {
	t := &r.Target
	return recovery.Endpoint{
		URL: t.Name(), Bucket: t.Bucket, Username: t.Username, Password: t.Password,
		TLS: cluster.TLSOf(t.Security), Network: t.Security.Network,
	}
}

// The lines of cbrecovery --json beside those of cbtransfer.
type (
	phaseLine struct {
		Type     string         `json:"type"` // "phase"
		Phase    recovery.Phase `json:"phase"`
		State    string         `json:"state"` // "started" or "ended"
		VBuckets int            `json:"vbuckets"`
		Left     int            `json:"left"`
		Elapsed  float64        `json:"elapsed_s"`
		Error    string         `json:"error,omitempty"`
	}
	planLine struct {
		Type string `json:"type"` // "plan"
		*recovery.Plan
	}
	replacedLine struct {
		Type   string `json:"type"` // "node-replaced"
		Add    string `json:"add"`
		Remove string `json:"remove"`
		Before bool   `json:"before"`
	}
	vbucketLine struct {
		Type string `json:"type"` // "vbucket"
		Step string `json:"step"`
		vbucketField
	}
	vbucketField struct {
		VBucket          uint16         `json:"vbucket"`
		State            recovery.State `json:"state"`
		Source           string         `json:"source,omitempty"`
		Destination      string         `json:"destination,omitempty"`
		SourceItems      uint64         `json:"source_items"`
		DestinationItems uint64         `json:"destination_items"`
		Code             string         `json:"code,omitempty"`
		Error            string         `json:"error,omitempty"`
		Hint             string         `json:"hint,omitempty"`
	}
	recoveryResult struct {
		Type        string         `json:"type"` // "result"
		Command     string         `json:"command"`
		ExitCode    int            `json:"exit_code"`
		DryRun      bool           `json:"dry_run"`
		Interrupted bool           `json:"interrupted"`
		Replaced    bool           `json:"replaced"`
		Recovered   []uint16       `json:"recovered"`
		Remaining   []uint16       `json:"remaining"`
		VBuckets    []vbucketField `json:"vbuckets"`
		Transfer    *counters      `json:"transfer"` // null: nothing was transferred
		Again       string         `json:"again,omitempty"`
		Elapsed     float64        `json:"elapsed_s"`
		Moving      float64        `json:"moving_s"` // the part of it in which items were read or written
	}
)

func vbucketOf(o *recovery.Outcome) vbucketField {
	f := vbucketField{
		VBucket: o.VBucket, State: o.State, Source: o.Source, Destination: o.Destination,
		SourceItems: o.SourceItems, DestinationItems: o.DestinationItems,
	}
	if o.Err != nil {
		f.Code, f.Error, f.Hint = pump.CodeOf(o.Err), plain(o.Err), oneLine(pump.HintOf(o.Err))
	}
	return f
}

// event shows what happens in a recovery.
func (j *recoveryJob) event(e recovery.Event) {
	say := j.say
	switch e := e.(type) {
	case recovery.Progress:
		r := j.meter.feed(&e.Snapshot)
		say.Status(progressText(&e.Snapshot, r))
		say.Emit(progressOf(&e.Snapshot, r))
		return
	case recovery.Warning:
		say.warn(warningLine{Type: "warning", Code: e.Code, Message: e.Text, Hint: e.Hint})
		return
	case recovery.PhaseStarted:
		j.phase.Store(e.Phase)
		say.Emit(phaseLine{Type: "phase", Phase: e.Phase, State: "started", VBuckets: e.VBuckets})
	case recovery.PhaseEnded:
		say.Clear()
		say.Emit(phaseLine{
			Type: "phase", Phase: e.Phase, State: "ended", VBuckets: e.Done, Left: e.Left,
			Elapsed: e.Elapsed.Seconds(), Error: plain(e.Err),
		})
		if e.Err != nil || e.Done+e.Left == 0 {
			return // an error is said at the end; a plan is shown whole
		}
	case recovery.Planned:
		plan := *e.Plan
		plan.Steps = append([]recovery.Step{}, plan.Steps...) // [] rather than null
		say.Emit(planLine{"plan", &plan})
	case recovery.Replaced:
		say.Emit(replacedLine{"node-replaced", e.Add, e.Remove, e.Before})
	case recovery.VBucketEvent:
		say.Emit(vbucketLine{"vbucket", e.Step, vbucketOf(&e.Outcome)})
		if j.flags.verbose == 0 {
			return // a thousand vbuckets need no line each; the summary has them all
		}
	}
	say.Print("%s: %s", say.name, plainText(e.String()))
}

// summary says what became of every vbucket, in ranges, and what to do next.
func (j *recoveryJob) summary() {
	say, res := j.say, j.result
	if res.Transfer != nil {
		say.Print("%s", reportText(res.Transfer))
	}
	if len(res.Outcomes) == 0 {
		return
	}
	var b strings.Builder
	for _, s := range []struct {
		state recovery.State
		text  string
	}{
		{recovery.StateRecovered, "recovered"},
		{recovery.StateActive, "active, map not published"},
		{recovery.StateReplica, "replica, not served"},
		{recovery.StateMissing, "missing"},
	} {
		var vbs []uint16
		for i := range res.Outcomes {
			if o := &res.Outcomes[i]; o.State == s.state {
				vbs = append(vbs, o.VBucket)
			}
		}
		if len(vbs) > 0 {
			fmt.Fprintf(&b, "  %-26s %14s  %s\n", s.text, countOf(len(vbs), "vbucket"), pump.FormatVBuckets(vbs))
		}
	}
	for _, why := range failures(res.Outcomes) {
		fmt.Fprintf(&b, "  %s\n", say.short(why, shortReason))
	}
	say.Print("%s", strings.TrimSuffix(b.String(), "\n"))
}

// next says what to do after a run. As long as vbuckets are missing it must not
// be a rebalance: that would create them anew, empty.
func (j *recoveryJob) next() string {
	res := j.result
	const wait = "Do not rebalance the destination before that: it would create them anew, empty."
	switch {
	case j.flags.dryRun:
		return "next: nothing was changed. To do it:\n  " + j.again(false)
	case len(res.Remaining()) > 0:
		return fmt.Sprintf("next: %s left. Mend what is named above, then run this; it does only what is left. %s\n  %s",
			countOf(len(res.Remaining()), "vbucket"), wait, j.again(res.Replaced))
	case res.Plan != nil && len(res.Plan.NotAsked) > 0:
		return fmt.Sprintf("next: %s not in the list and still missing: %s. Recover them too. %s",
			countOf(len(res.Plan.NotAsked), "vbucket"), pump.FormatVBuckets(res.Plan.NotAsked), wait)
	case res.Plan != nil && len(res.Plan.Holes) > 0:
		return fmt.Sprintf("next: copy vbucket %s with cbtransfer --vbucket-list: no recovery can fill what is active and empty. Then rebalance the destination, so that the recovered vbuckets get replicas again.",
			pump.FormatVBuckets(res.Plan.Holes))
	}
	return "next: rebalance the destination, so that the recovered vbuckets get replicas again."
}

// failures puts vbuckets that failed for one reason in one line.
func failures(outcomes []recovery.Outcome) []string {
	var order []string
	by := map[string][]uint16{}
	for i := range outcomes {
		o := &outcomes[i]
		if o.Err == nil {
			continue
		}
		// A reason that names its own vbucket would stand alone for each of them.
		why := strings.Replace(plain(o.Err), fmt.Sprintf("vbucket %d", o.VBucket), "", 1)
		why = strings.TrimPrefix(strings.Join(strings.Fields(why), " "), ": ")
		if by[why] == nil {
			order = append(order, why)
		}
		by[why] = append(by[why], o.VBucket)
	}
	const most = 20
	var lines []string
	for i, why := range order {
		if i == most {
			lines = append(lines, fmt.Sprintf("and %d more reasons; --json lists every vbucket's", len(order)-most))
			break
		}
		lines = append(lines, fmt.Sprintf("left: %s: %s", pump.FormatVBuckets(by[why]), why))
	}
	return lines
}

// again is the command line that goes on: without the node's replacement when
// that is done, and without secrets.
func (j *recoveryJob) again(replaced bool) string {
	f := j.flags
	words := []string{f.set.Name()}
	for _, spec := range f.set.Args() {
		words = append(words, shellWord(pump.RedactSpec(spec)))
	}
	f.set.Visit(func(g *pflag.Flag) {
		switch g.Name {
		case "password", "password-destination", "dry-run", "resume":
			return // a recovery that was gone on with is over, one way or the other
		case "add-node", "remove-node":
			if replaced {
				return
			}
		}
		name := "--" + g.Name
		if g.Shorthand != "" {
			name = "-" + g.Shorthand
		}
		switch v := g.Value.(type) {
		case pflag.SliceValue:
			for _, text := range v.GetSlice() {
				if !isSecretExtra(j.registry, text) {
					words = append(words, name, shellWord(text))
				}
			}
		default:
			switch g.Value.Type() {
			case "bool":
				words = append(words, name)
			case "count":
				words = append(words, "-"+strings.Repeat(g.Shorthand, f.verbose))
			default:
				words = append(words, name, shellWord(g.Value.String()))
			}
		}
	})
	if j.result.NotStopped {
		words = append(words, "--resume")
	}
	return strings.Join(words, " ")
}

// isSecretExtra reports whether one -x holds the value of a secret option.
func isSecretExtra(r *pump.Registry, extra string) bool {
	values, err := parseExtras([]string{extra})
	if err != nil {
		return true
	}
	for name := range values {
		if isSecret(r, name) {
			return true
		}
	}
	return false
}

// shellWord quotes a word for a shell where that is needed.
func shellWord(text string) string {
	plain := text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:,@%+=", r))
	})
	if plain {
		return text
	}
	return "'" + strings.ReplaceAll(oneLine(text), "'", `'\''`) + "'"
}

func (j *recoveryJob) resultLine(code int) any {
	res := j.result
	l := recoveryResult{
		Type: "result", Command: "cbrecovery", ExitCode: code, DryRun: j.flags.dryRun,
		Interrupted: res.Interrupted, Replaced: res.Replaced,
		Recovered: append([]uint16{}, res.Recovered()...), Remaining: append([]uint16{}, res.Remaining()...),
		VBuckets: []vbucketField{},
		Elapsed:  res.Spent.Total.Seconds(), Moving: res.Spent.Moving.Seconds(),
	}
	for i := range res.Outcomes {
		l.VBuckets = append(l.VBuckets, vbucketOf(&res.Outcomes[i]))
	}
	if res.Transfer != nil {
		c := countersOf(res.Transfer.Snapshot)
		l.Transfer = &c
	}
	if len(l.Remaining) > 0 {
		l.Again = j.again(res.Replaced)
	}
	return l
}
