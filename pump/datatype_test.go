package pump_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/golang/snappy"
	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
)

// TestUnpack: what is compressed comes out as it went in, and what only claims to be
// stays as it is, and costs nothing.
func TestUnpack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := pump.NewBatch(0)
		var due []pump.Item
		for i := range rapid.IntRange(0, 12).Draw(t, "items") {
			value := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "value"), rapid.IntRange(1, 200).Draw(t, "times"))
			it := pump.Item{Key: fmt.Append(nil, i), Value: value, Datatype: rapid.Uint8().Draw(t, "datatype")}
			want := it
			if it.Datatype&pump.DatatypeSnappy != 0 {
				switch rapid.IntRange(0, 3).Draw(t, "damage") {
				case 0:
					it.Value = binary.AppendUvarint(nil, uint64(rapid.Uint32().Draw(t, "lie"))|1<<20) // nothing behind it
					want = it
				default:
					it.Value = snappy.Encode(nil, value)
					want.Datatype &^= pump.DatatypeSnappy
				}
			}
			b.Items, due = append(b.Items, it), append(due, want)
		}
		b.Unpack()
		for i, want := range due {
			if it := b.Items[i]; it.Datatype != want.Datatype || !bytes.Equal(it.Value, want.Value) {
				t.Fatalf("item %d of datatype %d and %d bytes, due are %d and %d", i, it.Datatype, len(it.Value), want.Datatype, len(want.Value))
			}
		}
	})
	b := pump.NewBatch(0)
	b.Items = []pump.Item{{Datatype: 2, Value: binary.AppendUvarint(nil, 60<<20)}, {Datatype: 2}}
	if n := testing.AllocsPerRun(10, b.Unpack); n > 0 {
		t.Errorf("lies cost %v allocations", n)
	}
}

// formSink takes only plain values.
type formSink struct {
	pumptest.MemSink
	taken uint8
	err   error
}

func (s *formSink) Datatypes(context.Context) (uint8, error) { return s.taken, s.err }

// formSource is told what the sink takes.
type formSource struct {
	pumptest.MemSource
	told []uint8
}

func (s *formSource) ChooseDatatypes(taken uint8) { s.told = append(s.told, taken) }
func (s *formSource) Streams(ctx context.Context) ([]pump.Stream, error) {
	s.told = append(s.told, 0xff) // after what was chosen
	return s.MemSource.Streams(ctx)
}

// TestAgree: the source is told first, values are unpacked for sinks that want it
// and for no others, and a sink that cannot say ends the run.
func TestAgree(t *testing.T) {
	packed := snappy.Encode(nil, bytes.Repeat([]byte("abc"), 100))
	for _, taken := range []uint8{1, 3, 7} {
		source := &formSource{MemSource: pumptest.MemSource{Parts: [][]pump.Item{{
			{Key: []byte("k"), Value: packed, Datatype: 7}, {Key: []byte("plain"), Value: []byte("v"), Datatype: 1}, {Key: []byte("bad"), Value: []byte("\xff"), Datatype: 2}}}}}
		sink := &formSink{taken: taken}
		if _, err := pump.Run(t.Context(), pump.Config{Source: source, Sink: sink, Settings: pump.DefaultSettings(), Scribble: true}); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(source.told) != fmt.Sprint([]uint8{taken, 0xff}) {
			t.Errorf("the source was told %v", source.told)
		}
		k := sink.Items()["k"]
		if unpacked := taken&2 == 0; unpacked != (k.Datatype == 5) || unpacked != (len(k.Value) == 300) {
			t.Errorf("taken %d: datatype %d, %d bytes", taken, k.Datatype, len(k.Value))
		}
		if bad := sink.Items()["bad"]; bad.Datatype != 2 || string(bad.Value) != "\xff" {
			t.Errorf("what cannot be read came as %+v", bad)
		}
	}
	why := errors.New("no")
	if _, err := pump.Run(t.Context(), pump.Config{Source: &formSource{}, Sink: &formSink{err: why}, Settings: pump.DefaultSettings()}); !errors.Is(err, why) {
		t.Errorf("ended with %v", err)
	}
}
