package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/compare"
)

// compareWord, as the first word that is no flag, asks for a comparison in place
// of a copy.
const compareWord = "compare"

// compareFlags are the flags of cbtransfer about comparing.
type compareFlags struct {
	mode        string
	differences string
	deleteExtra bool
	memory      string
	tempDir     string
}

const (
	defaultCompareMemory = "64m"
	leastCompareMemory   = 16 << 20 // with less the temporary files become too many
)

func (f *transferFlags) addCompare() {
	s := f.set
	s.StringVar(&f.compare.mode, "verify", "", "")
	s.StringVar(&f.compare.differences, "differences", "", "")
	s.BoolVar(&f.compare.deleteExtra, "delete-extra", false, "")
	s.StringVar(&f.compare.memory, "compare-memory", defaultCompareMemory, "")
	s.StringVar(&f.compare.tempDir, "temp-dir", "", "")
}

// onlyCompares reports that the command was called as cbtransfer compare.
func (f *transferFlags) onlyCompares() bool {
	args := f.set.Args()
	return len(args) > 0 && args[0] == compareWord
}

// ends returns source and destination.
func (f *transferFlags) ends() (source, sink string, err error) {
	if !f.onlyCompares() {
		return f.positional("source", "destination")
	}
	args := f.set.Args()[1:]
	switch {
	case len(args) != 2:
		return "", "", f.usage("compare takes source and destination and nothing else, but %s there", standing(len(args)))
	case slices.Contains(args, ""):
		return "", "", f.usage("source and destination must not be empty")
	}
	return args[0], args[1], nil
}

func standing(n int) string {
	switch n {
	case 0:
		return "no word stands"
	case 1:
		return "1 word stands"
	}
	return fmt.Sprintf("%d words stand", n)
}

// comparison is what is to be compared, and how.
type comparison struct {
	t        *transfer
	registry *pump.Registry
	reader   *pump.Resolved // of the destination; nil where it is asked for keys
	asked    pump.Resolved  // the destination, where it is
	memory   pump.Size

	mode     compare.Mode
	monitors [2]pump.Monitor // of the readings of source and destination
	report   *compare.Report
	shown    [4]int // differences of each kind
	repair   *repairFile
}

// prepareCompare turns the flags into a comparison; nil means that none is wanted.
func (t *transfer) prepareCompare(r *pump.Registry) (*comparison, error) {
	f, c := t.flags, &t.flags.compare
	if c.mode == "" && !f.onlyCompares() {
		for _, name := range []string{"differences", "delete-extra", "compare-memory", "temp-dir"} {
			if f.given(name) {
				return nil, f.usage("--%s is about comparing: it goes with --verify, or with cbtransfer compare", name)
			}
		}
		return nil, nil
	}
	j := &comparison{t: t, registry: r, mode: compare.Mode(c.mode), asked: *t.to}
	if c.mode == "" {
		j.mode = compare.Full
	}
	if !slices.Contains(compare.Modes(), j.mode) {
		return nil, f.usage("--verify is count, digest or full")
	}
	var err error
	if j.memory, err = pump.ParseSize(c.memory); err != nil || j.memory < leastCompareMemory {
		return nil, f.usage("--compare-memory is a size of at least %s, such as 256m", pump.Size(leastCompareMemory))
	}
	switch {
	case c.differences != "" && j.mode != compare.Full:
		return nil, f.usage("--differences needs --verify full: %s does not tell one key from another", j.mode)
	case c.deleteExtra && c.differences == "":
		return nil, f.usage("--delete-extra says what --differences FILE is to hold")
	case f.onlyCompares() && f.given("destination-operation"):
		return nil, f.usage("--destination-operation says how to write, and compare writes nothing")
	}
	if why := readTwice(t.from); why != "" {
		return nil, f.usage("the source cannot be compared: %s", why)
	}
	if _, given := t.to.Given()["map-collections"]; given {
		return nil, f.usage("collections that were written under other names (map-collections) cannot be compared")
	}
	if t.vbuckets != nil && (isTrue(t.to, "rehash") || t.to.Target.Scheme == "json") {
		return nil, f.usage("the vbuckets of the destination are not those of the source, so a list of vbuckets cannot be compared")
	}
	return j, j.resolveReader()
}

// isTrue and isFalse read an option that says yes or no; both are false where it
// was not given, or says what it says by default.
func isTrue(r *pump.Resolved, option string) bool {
	return slices.Contains([]string{"true", "1", "yes", "on"}, strings.ToLower(r.Given()[option]))
}

func isFalse(r *pump.Resolved, option string) bool {
	return slices.Contains([]string{"false", "0", "no", "off"}, strings.ToLower(r.Given()[option]))
}

// readTwice says why a source cannot be read twice, or to an end; "" if it can.
func readTwice(r *pump.Resolved) string {
	switch {
	case fromStdin(&r.Target):
		return "standard input can be read only once"
	case isTrue(r, "follow"):
		return "with follow it has no end"
	}
	return ""
}

// resolveReader finds the source that reads what the destination holds.
func (j *comparison) resolveReader() error {
	t, f := j.t, j.t.flags
	to := t.to.Target
	if to.Scheme == "null" || toStdout(&to) {
		return f.usage("what was written to %s cannot be read, so it cannot be compared", to.Scheme)
	}
	spec := to.Name()
	if to.Scheme == "tap" || to.Scheme == "dcp" {
		// As sinks they are whole clusters, as sources single data ports.
		spec = "http:" + to.Rest
	} else if scheme, _, ok := strings.Cut(spec, ":"); ok && to.Scheme == scheme && !slices.Contains(j.registry.Schemes(pump.RoleSource), scheme) {
		return nil // perhaps it can be asked for keys
	}
	reader, err := j.registry.Resolve(pump.RoleSource, spec, to.Env)
	if err != nil {
		return err
	}
	reader.Target.Security = to.Security
	reader.Target.VBuckets = t.vbuckets
	if collection, given := t.from.Given()["collection"]; given && declares(reader.Plugin, "collection") {
		reader.Set("collection", collection)
	}
	j.reader = reader
	return nil
}

// sides opens the two sides.
func (j *comparison) sides() (src, dst compare.Side) {
	open := func(r *pump.Resolved) func(context.Context, []uint16) (pump.Source, error) {
		return func(ctx context.Context, vbs []uint16) (pump.Source, error) {
			end := *r
			if vbs != nil {
				end.Target.VBuckets = vbs
			}
			return end.OpenSource(ctx)
		}
	}
	src.Open = open(j.t.from)
	if j.reader == nil {
		dst.Look = func(ctx context.Context) (pump.Sink, error) { return j.asked.OpenSink(ctx) }
		return src, dst
	}
	dst.Open = open(j.reader)
	if isFalse(j.t.to, "with-meta") {
		// Of plain items servers make CAS and revision themselves, and find out what is JSON.
		dst.Fields = pump.AllFields &^ (pump.FieldCAS | pump.FieldRev | pump.FieldDatatype)
	}
	return src, dst
}

// run compares and says what it found.
func (j *comparison) run(ctx context.Context, stop <-chan struct{}) (err error) {
	t, say := j.t, j.t.say
	say.Print("%s: compare (%s): %s with %s", say.name, j.mode, endText(t.from), endText(t.to))
	src, dst := j.sides()
	if t.flags.dryRun {
		return j.dryRun(ctx, src, dst)
	}
	t.comparing.Store(j)
	defer t.comparing.Store(nil)
	limits, unwatch, err := t.flags.startLimits(say)
	if err != nil {
		return err
	}
	defer unwatch()
	if name := t.flags.compare.differences; name != "" {
		if j.repair, err = openRepair(ctx, j.registry, name, t.to.Target.Log); err != nil {
			return err
		}
		defer func() {
			// A file that could not be completed is worse than a difference.
			if cerr := j.repair.close(ctx, j.report != nil); cerr != nil {
				err = cerr
			}
		}()
	}
	cfg := compare.Config{
		Source: src, Sink: dst, Mode: j.mode, Filter: t.filter, Settings: t.settings, Memory: int64(j.memory), Dir: t.flags.compare.tempDir,
		Limits: limits, Items: j.repair != nil, OnDifference: func(d *compare.Difference) error { return j.difference(ctx, d) },
		Log: say.logger(t.flags.verbose).Named("compare"), Stop: stop, ProgressEvery: say.every(),
		Monitors: [2]*pump.Monitor{&j.monitors[0], &j.monitors[1]},
		Progress: func(p compare.Progress) {
			say.Status(comparingText(&p))
			say.Emit(comparingOf(&p))
		},
	}
	j.report, err = compare.Run(ctx, cfg)
	say.Clear()
	if err != nil {
		return err
	}
	if j.repair != nil {
		if err := j.repair.flush(ctx); err != nil {
			return err
		}
	}
	say.Print("%s", j.text())
	if j.repair != nil && j.repair.n > 0 {
		say.Print("next: to repair the destination:\n  %s", j.repairCommand())
	}
	return j.verdict()
}

// dryRun only finds out whether both sides can be used.
func (j *comparison) dryRun(ctx context.Context, src, dst compare.Side) (err error) {
	var ends []interface{ Close() error }
	defer func() {
		for _, e := range ends {
			if cerr := e.Close(); err == nil {
				err = cerr
			}
		}
	}()
	source, err := src.Open(ctx, nil)
	if err != nil {
		return err
	}
	ends = append(ends, source)
	if err := pump.Check(ctx, source, nil); err != nil {
		return err
	}
	if dst.Look != nil {
		sink, err := dst.Look(ctx)
		if err != nil {
			return err
		}
		ends = append(ends, sink)
		return pump.Check(ctx, nil, sink)
	}
	other, err := dst.Open(ctx, nil)
	if err != nil {
		return err
	}
	ends = append(ends, other)
	if err := pump.Check(ctx, other, nil); err != nil {
		return err
	}
	j.t.say.Print("%s: dry run: both ends can be read", j.t.say.name)
	return nil
}

// maxShownDifferences is how many differences of each kind people are shown; --json
// and the file have all.
const maxShownDifferences = 20

// difference shows one difference and keeps what repairs it.
func (j *comparison) difference(ctx context.Context, d *compare.Difference) error {
	say := j.t.say
	l := j.lineOf(d)
	say.Emit(l)
	j.shown[d.Kind]++
	if n := j.shown[d.Kind]; n <= maxShownDifferences || say.full {
		where := ""
		if d.VBucket != pump.NoVBucket {
			where = fmt.Sprintf("  vbucket %d", d.VBucket)
		}
		if d.Collection != nil {
			where += "  " + d.Collection.String()
		}
		what := ""
		if len(l.Fields) > 0 {
			what = "  (" + strings.Join(l.Fields, ", ") + ")"
		}
		say.Print("  %-9s%s  %s%s", d.Kind, where, userData(d.Key), what)
	} else if n == maxShownDifferences+1 {
		say.Print("  and more that are %s; -v and --json list every one", d.Kind)
	}
	if j.repair == nil {
		return nil
	}
	return j.repair.add(ctx, d, j.t.flags.compare.deleteExtra)
}

// differenceLine is a difference in --json.
type differenceLine struct {
	Type       string  `json:"type"` // "difference"
	Kind       string  `json:"kind"`
	VBucket    *uint16 `json:"vbucket"` // null: neither side says
	Collection string  `json:"collection,omitempty"`
	keyField
	Fields      []string    `json:"fields"`
	Source      *stateField `json:"source"`      // null: it does not have the key
	Destination *stateField `json:"destination"` // null: it does not have the key
}

// stateField is what a side says of a key.
type stateField struct {
	Op       string `json:"op"`
	Flags    uint32 `json:"flags"`
	Expiry   uint32 `json:"expiry"`
	CAS      uint64 `json:"cas,string"`
	Rev      uint64 `json:"rev,string"`
	Datatype uint8  `json:"datatype"`
}

func stateOf(s *compare.State) *stateField {
	if s == nil {
		return nil
	}
	return &stateField{s.Op.String(), s.Flags, s.Expiry, s.CAS, s.Rev, s.Datatype}
}

func (j *comparison) lineOf(d *compare.Difference) differenceLine {
	l := differenceLine{Type: "difference", Kind: d.Kind.String(), Fields: d.Fields.Names(), Source: stateOf(d.Source), Destination: stateOf(d.Sink)}
	if d.VBucket != pump.NoVBucket {
		vb := d.VBucket
		l.VBucket = &vb
	}
	if d.Collection != nil {
		l.Collection = d.Collection.String()
	}
	l.keyField = keyOf(d.Key)
	return l
}

// text is the table at the end of a comparison.
func (j *comparison) text() string {
	r := j.report
	var b strings.Builder
	row := func(name string, n uint64, more string) {
		fmt.Fprintf(&b, "  %-14s %15s%s\n", name, grouped(n), more)
	}
	fmt.Fprintf(&b, "  %-14s %15s\n", "", "live items")
	row("source", r.Sides[0].Live, "")
	found := ""
	if r.ExtraUnknown {
		found = "  of the source's keys; what else it holds is not known: it can be asked for keys, not listed"
	}
	row("destination", r.Sides[1].Live, found)
	if r.Mode == compare.Full {
		row("same", r.Same, "")
		row("missing", r.Missing, "")
		if !r.ExtraUnknown {
			row("extra", r.Extra, "")
		}
		var by []string
		for i, n := range r.ByField {
			if n > 0 {
				by = append(by, fmt.Sprintf("%s %s", pump.Fields(1<<i), grouped(n)))
			}
		}
		more := ""
		if len(by) > 0 {
			more = "  " + strings.Join(by, ", ")
		}
		row("different", r.Different, more)
		if r.Changed > 0 {
			row("changed", r.Changed, "  while they were compared; looked at again they agree")
		}
	}
	if vbs := r.Differing(); len(vbs) > 0 {
		fmt.Fprintf(&b, "  differing vbuckets: %s\n", pump.FormatVBuckets(vbs))
	}
	if r.Mode == compare.Count {
		fmt.Fprintf(&b, "  compared: numbers of items only%s\n", map[bool]string{true: ", as the servers count them, with documents whose time is over and that nobody has removed yet"}[r.Counted])
	} else {
		fmt.Fprintf(&b, "  compared: key, %s\n", r.Fields)
	}
	for _, s := range r.Skipped {
		of := ""
		if s.Items > 0 {
			of = " of " + countOf(int(s.Items), "item")
		}
		fmt.Fprintf(&b, "  not compared: %s%s (%s)\n", s.Field, of, s.Why)
	}
	fmt.Fprintf(&b, "  %.1f s", r.Elapsed.Seconds())
	return b.String()
}

// verdict is nil if the sides are equal.
func (j *comparison) verdict() error {
	r := j.report
	e := &pump.Error{Class: pump.ClassPartial, Code: "different", Op: "compare"}
	vbs := r.Differing()
	switch {
	case r.Equal():
		if r.Mode == compare.Full && r.Same == 0 && r.Sides[0].Read+r.Sides[1].Read > 0 && r.Sides[0].Live+r.Sides[1].Live == 0 {
			j.t.say.Warn("neither side has an item that clients can read")
		}
		return nil
	case r.Mode == compare.Full:
		e.Err = fmt.Errorf("the destination is not like the source: %s missing, %s extra, %s different", grouped(r.Missing), grouped(r.Extra), grouped(r.Different))
		switch f := &j.t.flags.compare; {
		case j.repair == nil:
			e.Hint = "--differences FILE.jsonl writes the source's items to a file that repairs the destination."
		case r.Extra > 0 && !f.deleteExtra:
			e.Hint = fmt.Sprintf("%s holds what the source has of the others; --delete-extra would also delete what only the destination has.", f.differences)
		default:
			e.Hint = fmt.Sprintf("%s holds what makes the destination like the source.", f.differences)
		}
	case len(vbs) > 0:
		e.Err = fmt.Errorf("the %s of %s differ: %s", map[compare.Mode]string{compare.Count: "counts", compare.Digest: "digests"}[r.Mode], countOf(len(vbs), "vbucket"), pump.FormatVBuckets(vbs))
		e.Hint = "cbtransfer compare SOURCE DESTINATION (--verify full) names the keys."
	default:
		e.Err = fmt.Errorf("the %s differ (%s and %s items)", map[compare.Mode]string{compare.Count: "counts", compare.Digest: "digests"}[r.Mode], grouped(r.Sides[0].Live), grouped(r.Sides[1].Live))
		e.Hint = "cbtransfer compare SOURCE DESTINATION (--verify full) names the keys."
	}
	return e
}

// repairCommand is the command that repairs the destination. Conflict resolution
// would keep what differs only in what it does not look at.
func (j *comparison) repairCommand() string {
	f := j.t.flags
	words := []string{j.t.say.name, shellWord(f.compare.differences), shellWord(pump.RedactSpec(f.set.Args()[len(f.set.Args())-1]))}
	if bucket := j.t.to.Target.Bucket; serverOf(&j.t.to.Target).bucket && bucket != "default" {
		words = append(words, "-B", shellWord(bucket))
	}
	if declares(j.t.to.Plugin, "conflict-resolution") {
		words = append(words, "-x", "conflict-resolution=false")
	}
	return strings.Join(words, " ")
}

// comparingText is the line that shows how far a comparison has come.
func comparingText(p *compare.Progress) string {
	text := fmt.Sprintf("read %s of the source, %s of the destination", grouped(p.Sides[0].Read), grouped(p.Sides[1].Read))
	if p.Second {
		text = "looking again at what differs: " + text
	}
	return text
}

// comparingLine is the progress of a comparison in --json.
type comparingLine struct {
	Type        string `json:"type"` // "comparing"
	Second      bool   `json:"second"`
	Source      uint64 `json:"source_read"`
	Destination uint64 `json:"destination_read"`
}

func comparingOf(p *compare.Progress) comparingLine {
	return comparingLine{"comparing", p.Second, p.Sides[0].Read, p.Sides[1].Read}
}

// verifyField is the outcome of a comparison in a result line.
type verifyField struct {
	Mode         compare.Mode      `json:"mode"`
	Complete     bool              `json:"complete"` // both sides were read whole
	Equal        bool              `json:"equal"`
	Source       uint64            `json:"source_items"`
	Destination  uint64            `json:"destination_items"`
	Same         uint64            `json:"same"`
	Missing      uint64            `json:"missing"`
	Extra        *uint64           `json:"extra"` // null: cannot be known
	Different    uint64            `json:"different"`
	Changed      uint64            `json:"changed"`
	ByField      map[string]uint64 `json:"by_field"`
	Differing    []uint16          `json:"differing_vbuckets"`
	VBuckets     []vbCompareField  `json:"vbuckets"`
	Compared     []string          `json:"compared"`
	NotCompared  []skippedField    `json:"not_compared"`
	SpilledBytes int64             `json:"spilled_bytes"`
	Elapsed      float64           `json:"elapsed_s"`
}

type skippedField struct {
	Field  string `json:"field"`
	Items  uint64 `json:"items"` // 0: of all
	Reason string `json:"reason"`
}

type vbCompareField struct {
	VBucket     uint16 `json:"vbucket"`
	Source      uint64 `json:"source_items"`
	Destination uint64 `json:"destination_items"`
	Missing     uint64 `json:"missing"`
	Extra       uint64 `json:"extra"`
	Different   uint64 `json:"different"`
	Differs     bool   `json:"differs"`
}

// field is the comparison's part of the result line; nil if there was none.
func (j *comparison) field() *verifyField {
	if j == nil {
		return nil
	}
	v := &verifyField{Mode: j.mode, ByField: map[string]uint64{}, Differing: []uint16{}, VBuckets: []vbCompareField{}, Compared: []string{}, NotCompared: []skippedField{}}
	r := j.report
	if r == nil {
		return v
	}
	v.Complete, v.Equal, v.Source, v.Destination = true, r.Equal(), r.Sides[0].Live, r.Sides[1].Live
	v.Same, v.Missing, v.Different, v.Changed, v.SpilledBytes, v.Elapsed = r.Same, r.Missing, r.Different, r.Changed, r.Spilled, r.Elapsed.Seconds()
	if r.Mode == compare.Full && !r.ExtraUnknown {
		v.Extra = &r.Extra
	}
	v.Compared = append(v.Compared, r.Fields.Names()...)
	v.Differing = append(v.Differing, r.Differing()...)
	for i, n := range r.ByField {
		if n > 0 {
			v.ByField[pump.Fields(1<<i).String()] = n
		}
	}
	for _, s := range r.Skipped {
		v.NotCompared = append(v.NotCompared, skippedField{s.Field.String(), s.Items, s.Why})
	}
	for _, b := range r.VBuckets {
		v.VBuckets = append(v.VBuckets, vbCompareField{b.VBucket, b.Live[0], b.Live[1], b.Missing, b.Extra, b.Different, b.Differs || b.Missing+b.Extra+b.Different > 0})
	}
	return v
}

// verify compares after a copy, if that is wanted and the copy came to its end.
// copied is how the copy ended.
func (t *transfer) verify(ctx context.Context, stop <-chan struct{}, copied error) error {
	if t.compare == nil || t.report == nil {
		return copied
	}
	if copied != nil && pump.ClassOf(copied) != pump.ClassPartial {
		t.say.Notice("the copy did not come to its end, so it is not compared")
		return copied
	}
	err := t.compare.run(ctx, stop)
	if copied == nil {
		return err
	}
	return errors.Join(copied, err)
}
