package compare

import "github.com/cbpump/cbpump/pump"

// Kind is what is the matter with a key.
type Kind uint8

// The kinds of differences.
const (
	Same      Kind = iota
	Missing        // the source has it, the destination does not
	Extra          // the destination has it, the source does not
	Different      // both know it, and not alike
)

func (k Kind) String() string {
	return [...]string{"same", "missing", "extra", "different"}[k]
}

// clockSlack is by how many seconds the clocks of servers may differ when it is
// judged whether an item's time is over.
const clockSlack = 5

// rules judge what two sides say of a key.
type rules struct {
	fields     pump.Fields // that are compared
	tombstones bool        // deletions that both sides tell are compared too
	now        uint32      // Unix seconds
}

// skips count the comparisons of single fields that could not be made.
type skips struct{ cas, rev, datatype uint64 }

func (r *rules) expired(s *State) bool {
	return s.Op == pump.Mutation && s.Expiry != 0 && s.Expiry <= r.now+clockSlack
}

// live reports an item that clients can read.
func (r *rules) live(s *State) bool { return s != nil && s.Op == pump.Mutation && !r.expired(s) }

// judge compares; nil means that a side has said nothing of the key. Deleted,
// expired and absent are alike, since clients see nothing in any of these cases,
// and servers forget deletions after a while.
func (r *rules) judge(src, dst *State, not *skips) (Kind, pump.Fields) {
	has := func(s *State) bool { return s != nil && s.Op == pump.Mutation }
	switch {
	case !r.live(src) && !r.live(dst):
		if r.tombstones && src != nil && dst != nil && src.Op != pump.Mutation && dst.Op != pump.Mutation {
			if f := r.meta(src, dst, not); f != 0 {
				return Different, f
			}
		}
		return Same, 0
	case has(src) && has(dst):
		f := r.meta(src, dst, not)
		for _, c := range [...]struct {
			field  pump.Fields
			differ bool
		}{
			{pump.FieldValue, src.value != dst.value},
			{pump.FieldFlags, src.Flags != dst.Flags},
			{pump.FieldExpiry, src.Expiry != dst.Expiry},
		} {
			if c.differ && r.fields.Has(c.field) {
				f |= c.field
			}
		}
		if src.Datatype != dst.Datatype && r.fields.Has(pump.FieldDatatype) {
			// Sources that do not number their items do not know their datatype either, and
			// the destination finds out by itself what is JSON.
			if src.Seqno == 0 && src.Datatype == 0 && dst.Datatype == 1 {
				not.datatype++
			} else {
				f |= pump.FieldDatatype
			}
		}
		if !r.live(src) && !r.fields.Has(pump.FieldExpiry) {
			f |= pump.FieldExpiry // it lives on, though its time is over
		}
		if f == 0 {
			return Same, 0
		}
		return Different, f
	case r.live(src) && dst == nil:
		return Missing, 0
	case r.live(src):
		return Missing, pump.FieldDeleted
	case src == nil:
		return Extra, 0
	}
	return Different, pump.FieldDeleted
}

// meta compares CAS and revision. A source that has none cannot say what they
// should be; a CAS of all ones is none to servers.
func (r *rules) meta(src, dst *State, not *skips) (f pump.Fields) {
	if r.fields.Has(pump.FieldCAS) {
		switch {
		case src.CAS == 0 || src.CAS == ^uint64(0):
			not.cas++
		case src.CAS != dst.CAS:
			f |= pump.FieldCAS
		}
	}
	if r.fields.Has(pump.FieldRev) {
		switch {
		case src.Rev == 0:
			not.rev++
		case src.Rev != dst.Rev:
			f |= pump.FieldRev
		}
	}
	return f
}
