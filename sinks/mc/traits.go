package mc

import (
	"bytes"
	"encoding/binary"
	"encoding/json"

	"github.com/golang/snappy"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// Traits are what a node takes, as the connection to it negotiated. Nothing is
// assumed that was not granted.
type Traits struct {
	Version cluster.Version
	Modern  bool // 5.0 and later: extended errors, users
	LWW     bool // the bucket resolves conflicts by time: last write wins

	JSON, Snappy, Xattr bool // datatype bits that it takes
	Collections         bool // keys carry their collection's id

	Errors cluster.ErrorMap // what the node says of statuses that are not known here
}

// TraitsOf reads the traits of a new connection.
func TraitsOf(c *cluster.Conn, b *cluster.Bucket) Traits {
	return Traits{
		Version: c.NodeVersion(), Modern: c.Has(mcbp.FeatureXerror), LWW: b.LastWriteWins(),
		JSON: c.Has(mcbp.FeatureJSON), Snappy: c.Has(mcbp.FeatureSnappy), Xattr: c.Has(mcbp.FeatureXattr),
		Collections: c.Has(mcbp.FeatureCollections),
	}
}

// Features returns what connections that carry items ask for, from 5.0 on.
func Features() []uint16 {
	return []uint16{mcbp.FeatureXattr, mcbp.FeatureSnappy, mcbp.FeatureJSON, mcbp.FeatureCollections}
}

// RefuseDatatype returns why a node cannot take an item's value, compressed or not,
// or nil.
func (t *Traits) RefuseDatatype(it *pump.Item) *pump.Error {
	switch {
	case it.Op != pump.Mutation && len(it.Value) == 0:
	case it.Datatype&^(mcbp.DatatypeJSON|mcbp.DatatypeSnappy|mcbp.DatatypeXattr) != 0:
		return errUnknownDatatype
	case it.Datatype&mcbp.DatatypeXattr != 0 && !t.Xattr:
		return errXattr
	}
	return nil
}

// wireValue is an item's value and datatype as the node takes them; scratch holds
// an unpacked value and is returned grown.
func (t *Traits) wireValue(it *pump.Item, scratch []byte) (value []byte, datatype uint8, grown []byte, why *pump.Error) {
	value, datatype = it.Value, it.Datatype
	whole := value // unpacked
	if datatype&mcbp.DatatypeSnappy != 0 && (!t.Snappy || datatype&mcbp.DatatypeXattr != 0) {
		n, err := snappy.DecodedLen(value)
		if err != nil || n > maxValue {
			return nil, 0, scratch, errBadSnappy
		}
		if cap(scratch) < n {
			scratch = make([]byte, n)
		}
		if whole, err = snappy.Decode(scratch[:cap(scratch)], value); err != nil {
			return nil, 0, scratch, errBadSnappy
		}
		if !t.Snappy {
			value, datatype = whole, datatype&^mcbp.DatatypeSnappy
		}
	}
	if datatype&mcbp.DatatypeXattr != 0 && !validXattrs(whole) {
		return nil, 0, scratch, errBadXattr // servers close the connection on it
	}
	switch {
	case !t.JSON:
		datatype &^= mcbp.DatatypeJSON
	case datatype == 0 && it.Seqno == 0 && it.Op == pump.Mutation && looksJSON(value) && json.Valid(value):
		// Sources that do not number their items (TAP, documents) do not know their
		// datatype either, and a server that was told one does not look itself.
		datatype = mcbp.DatatypeJSON
	}
	return value, datatype, scratch, nil
}

// validXattrs reports whether a value begins with a block of extended attributes: its
// length (u32), and then for each a length (u32), name, 0, JSON, 0.
func validXattrs(v []byte) bool {
	if len(v) < 4 {
		return false
	}
	n := binary.BigEndian.Uint32(v)
	if v = v[4:]; uint64(n) > uint64(len(v)) {
		return false
	}
	for v = v[:n]; len(v) > 0; {
		if len(v) < 4 {
			return false
		}
		n := binary.BigEndian.Uint32(v)
		if v = v[4:]; n < 2 || uint64(n) > uint64(len(v)) {
			return false
		}
		name, value, ok := bytes.Cut(v[:n], []byte{0})
		if !ok || len(name) == 0 || len(value) == 0 || value[len(value)-1] != 0 || !json.Valid(value[:len(value)-1]) {
			return false
		}
		v = v[n:]
	}
	return true
}

// looksJSON tells most other values apart without reading them.
func looksJSON(v []byte) bool {
	for _, c := range v {
		switch c {
		case ' ', '\t', '\n', '\r':
			continue
		case '{', '[', '"', '-', 't', 'f', 'n', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			return true
		}
		return false
	}
	return false
}
