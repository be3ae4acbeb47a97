// Package gen is the source gen:, which makes items up: for benchmarks,
// rehearsals and tests of destinations.
//
// Item number i (0, 1, 2 …) depends on nothing but the options and i:
//
//   - Its key is the prefix and i in decimal, padded with zeros to ten digits
//     ("gen-0000000042"). No two items have the same key.
//   - It is a deletion with a probability of 1 - ratio-sets, else a mutation.
//   - Its value has between min-value-size and max-value-size bytes, evenly
//     spread, of letters, digits, '-' and '_'; with json it is the document
//     {"i":42,"body":"…"} of that size, or with an empty body where that is
//     longer, and the item's datatype says JSON.
//   - With meta it has revision 1 and the CAS 1500000000000000000 + i (2017, in
//     the nanoseconds that servers count in), as items of clusters have such; else it
//     has neither, and a cluster takes it as a new write.
//   - Flags, expiry and vbucket are left unset.
//
// Streams share the numbers out (stream s of n has s, s+n, s+2n …), so the same
// options give the same items however many streams there are; only their order
// differs. Nothing is allocated per item.
package gen

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"strconv"

	"github.com/cbpump/cbpump/pump"
)

// Options of gen:. Their help texts are the documentation.
type Options struct {
	MaxItems     uint64    `opt:"max-items" default:"10000" help:"how many items to make; 0 never ends"`
	MinValueSize pump.Size `opt:"min-value-size" default:"10" help:"fewest bytes of a value"`
	MaxValueSize pump.Size `opt:"max-value-size" default:"0" help:"most bytes of a value; 0 means as min-value-size"`
	Prefix       string    `opt:"prefix" default:"gen-" help:"what every key begins with"`
	JSON         bool      `opt:"json" default:"false" help:"make JSON documents"`
	Meta         bool      `opt:"meta" default:"false" help:"give items revisions and CAS values, as those of a cluster have"`
	RatioSets    float64   `opt:"ratio-sets" default:"1" help:"share of mutations among the items, from 0 to 1; the others are deletions"`
	Seed         uint64    `opt:"seed" default:"1" help:"another seed gives other sizes, values and deletions; keys stay the same"`
	Streams      int       `opt:"streams" default:"2" help:"how many streams to read in parallel"`
}

const (
	maxPrefix  = 230      // leaves room for 20 digits within a key of 250 bytes
	maxValue   = 64 << 20 // the largest document that any server takes is 20 MiB
	maxStreams = 1024
	firstCAS   = 1_500_000_000_000_000_000
	// textLen is the length of the text that values are cut from. A power of two.
	textLen     = 64 << 10
	jsonHead    = `{"i":`
	jsonMid     = `,"body":"`
	jsonTail    = `"}`
	alphabet    = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
	datatypeBit = 1 // JSON
)

// Plugin returns the declaration of gen: for a registry.
func Plugin() pump.SourcePlugin[Options] {
	return pump.SourcePlugin[Options]{
		Schemes: []string{"gen"},
		Summary: "generated items; the same seed gives the same items",
		Doc: "gen: makes items with the keys PREFIX0000000000, PREFIX0000000001 and so on. " +
			"Item and value depend only on the options, not on the number of streams.",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Source, error) {
			if t.Rest != "" {
				return nil, pump.Usagef("gen: takes options only, such as gen:?max-items=1000")
			}
			return New(o)
		},
	}
}

// Source makes items. It implements pump.Source, pump.Estimator and pump.Distinct.
type Source struct {
	o    Options
	text []byte // textLen bytes that values are cut from
	sets uint64 // an item whose coin is below this is a mutation
	hash uint64 // of the options
}

// New returns a source; it fails (wrong use) on options that contradict each other.
func New(o Options) (*Source, error) {
	if o.MaxValueSize == 0 {
		o.MaxValueSize = o.MinValueSize
	}
	switch {
	case o.MinValueSize < 0 || o.MaxValueSize < o.MinValueSize:
		return nil, pump.Usagef("gen: max-value-size (%s) is below min-value-size (%s)", o.MaxValueSize, o.MinValueSize)
	case o.MaxValueSize > maxValue:
		return nil, pump.Usagef("gen: max-value-size is above %s", pump.Size(maxValue))
	case math.IsNaN(o.RatioSets) || o.RatioSets < 0 || o.RatioSets > 1:
		return nil, pump.Usagef("gen: ratio-sets is a share between 0 and 1")
	case len(o.Prefix) > maxPrefix:
		return nil, pump.Usagef("gen: prefix is longer than %d bytes, which leaves no room for the number in a key", maxPrefix)
	case o.Streams < 1 || o.Streams > maxStreams:
		return nil, pump.Usagef("gen: streams is a number from 1 to %d", maxStreams)
	}
	s := &Source{o: o, text: make([]byte, textLen), sets: uint64(o.RatioSets * (1 << 53))}
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%+v", o) // a hash takes everything
	s.hash = h.Sum64()
	for i := 0; i < textLen; i += 8 {
		r := mix(o.Seed, uint64(i), 1)
		for j := range 8 {
			s.text[i+j] = alphabet[r&63]
			r >>= 8
		}
	}
	return s, nil
}

// mix returns the same 64 even bits for the same seed, number and purpose
// (the finalizer of SplitMix64).
func mix(seed, n, purpose uint64) uint64 {
	z := seed*0x9e3779b97f4a7c15 + n*0xd1342543de82ef95 + purpose*0xda942042e4dd58b5
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Streams returns as many streams as the option says.
func (s *Source) Streams(context.Context) ([]pump.Stream, error) {
	out := make([]pump.Stream, s.o.Streams)
	for i := range out {
		out[i] = &stream{src: s, index: i}
	}
	return out, nil
}

// DistinctKeys is true: see pump.Distinct.
func (s *Source) DistinctKeys() bool { return true }

// Close has nothing to release.
func (s *Source) Close() error { return nil }

// Estimate returns the exact number of items and the expected number of bytes.
func (s *Source) Estimate(context.Context) (pump.Estimate, error) {
	n := s.o.MaxItems
	key := float64(len(s.o.Prefix) + 10)
	value := float64(s.o.MinValueSize+s.o.MaxValueSize) / 2 * s.o.RatioSets
	return pump.Estimate{Items: n, Bytes: uint64(float64(n) * (key + value))}, nil
}

type stream struct {
	src   *Source
	index int
	next  uint64 // number of the next item
	live  uint64 // mutations among those before it
	state [16]byte
}

// ID names the part; it holds what decides which items the stream makes.
func (s *stream) ID() string {
	return fmt.Sprintf("gen:seed=%d:stream=%d/%d", s.src.o.Seed, s.index, s.src.o.Streams)
}

// Open begins at the first item, or at the last mark's: its Seqno is the number
// of the next item, its State the number of mutations before it and a hash of the
// options, all of which must be as they were: another prefix makes other items.
func (s *stream) Open(_ context.Context, from []pump.Mark) error {
	s.next, s.live = uint64(s.index), 0
	for _, m := range from {
		if len(m.State) != len(s.state) || m.Seqno%uint64(s.src.o.Streams) != uint64(s.index) || binary.BigEndian.Uint64(m.State[8:]) != s.src.hash {
			return &pump.Error{Class: pump.ClassUsage, Code: "gen-mark", Op: "go on with " + s.ID(),
				Err:  fmt.Errorf("the mark at item %d was made with other options of gen:", m.Seqno),
				Hint: "Use the options of before, or start from the beginning."}
		}
		s.next, s.live = m.Seqno, binary.BigEndian.Uint64(m.State)
	}
	return nil
}

// Close has nothing to release.
func (s *stream) Close() error { return nil }

// Read fills the batch's arena and sets one mark behind its last item.
func (s *stream) Read(ctx context.Context, b *pump.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &s.src.o
	for o.MaxItems == 0 || s.next < o.MaxItems {
		if !s.src.make(b, s.next, &s.live) {
			break
		}
		s.next += uint64(o.Streams)
	}
	if len(b.Items) == 0 {
		return io.EOF
	}
	b.Marks = append(b.Marks, pump.Mark{
		VBucket: pump.NoVBucket, Seqno: s.next, Items: s.live,
		Complete: o.MaxItems != 0 && s.next >= o.MaxItems,
		State:    binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(s.state[:0], s.live), s.src.hash),
	})
	return nil
}

// make adds item n to b, or returns false if b has no room for it. An item that
// is larger than a whole arena goes into a batch of its own.
func (s *Source) make(b *pump.Batch, n uint64, live *uint64) bool {
	deletion := s.sets < 1<<53 && mix(s.o.Seed, n, 2)>>11 >= s.sets
	digits := 10
	if s.o.JSON || n >= 1e10 {
		digits = decimalLen(n)
	}
	keyLen := len(s.o.Prefix) + max(10, digits)
	size := 0
	if !deletion {
		size = int(s.o.MinValueSize)
		if span := uint64(s.o.MaxValueSize-s.o.MinValueSize) + 1; span > 1 {
			size += int(mix(s.o.Seed, n, 3) % span)
		}
		if s.o.JSON {
			size = max(size, len(jsonHead)+digits+len(jsonMid)+len(jsonTail))
		}
	}
	if len(b.Items) > 0 && keyLen+size > b.Free() {
		return false
	}
	mem := b.Alloc(keyLen + size)
	it := b.Append()
	it.VBucket = pump.NoVBucket
	if s.o.Meta {
		it.RevSeqno, it.CAS = 1, firstCAS+n
	}
	it.Key = mem[:keyLen:keyLen]
	at := copy(it.Key, s.o.Prefix)
	putDecimal(it.Key[at:], n)
	if deletion {
		it.Op = pump.Deletion
		return true
	}
	*live++
	it.Value = mem[keyLen:]
	body := it.Value
	if s.o.JSON {
		it.Datatype = datatypeBit
		at := copy(body, jsonHead)
		putDecimal(body[at:at+digits], n)
		at += digits
		at += copy(body[at:], jsonMid)
		copy(body[len(body)-len(jsonTail):], jsonTail)
		body = body[at : len(body)-len(jsonTail)]
	}
	from := int(mix(s.o.Seed, n, 4) % textLen)
	for len(body) > 0 {
		body = body[copy(body, s.text[from:]):]
		from = 0
	}
	return true
}

func decimalLen(n uint64) int {
	var b [20]byte
	return len(strconv.AppendUint(b[:0], n, 10))
}

// pairs are the numbers from 00 to 99.
const pairs = "00010203040506070809" + "10111213141516171819" + "20212223242526272829" + "30313233343536373839" + "40414243444546474849" +
	"50515253545556575859" + "60616263646566676869" + "70717273747576777879" + "80818283848586878889" + "90919293949596979899"

// putDecimal fills p with n, padded with zeros in front.
func putDecimal(p []byte, n uint64) {
	for len(p) > 1 {
		last := len(p) - 2
		copy(p[last:], pairs[n%100*2:][:2])
		p, n = p[:last], n/100
	}
	if len(p) > 0 {
		p[0] = byte('0' + n%10)
	}
}
