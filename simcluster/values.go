package simcluster

import (
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"time"

	"github.com/golang/snappy"

	"github.com/cbpump/cbpump/mcbp"
)

const (
	dtJSON   = uint8(mcbp.DatatypeJSON)
	dtSnappy = uint8(mcbp.DatatypeSnappy)
	dtXattr  = uint8(mcbp.DatatypeXattr)
)

// datatypeAllowed: from 5.0 on each bit of the datatype must have been negotiated.
func (c *conn) datatypeAllowed(d uint8) bool {
	allowed := uint8(0)
	if c.datatype {
		allowed |= dtJSON
	}
	if c.has(mcbp.FeatureSnappy) {
		allowed |= dtSnappy
	}
	if c.has(mcbp.FeatureXattr) {
		allowed |= dtXattr
	}
	return d&^allowed == 0
}

// checkValue checks a value against its datatype, from 5.0 on, and gives the
// datatype to store it with: *_WITH_META keeps what the client says, a plain write
// is looked at by the server. ok is false when the request was answered, and then
// more says whether the connection stays.
func (c *conn) checkValue(f *mcbp.Frame, value []byte, meta bool) (datatype uint8, ok, more bool) {
	keep := c.n.c.rel >= rel65
	plain := value
	if f.Datatype&dtSnappy != 0 {
		v, err := snappy.Decode(nil, value)
		if err != nil {
			c.refuse(f, mcbp.StatusInvalid, "Failed to inflate payload")
			return 0, false, true
		}
		plain = v
	}
	if f.Datatype&dtXattr != 0 {
		switch checkXattrs(plain) {
		case xattrsBroken:
			if !keep {
				return 0, false, false // 6.0 just hangs up
			}
			fallthrough
		case xattrsNoJSON:
			c.refuse(f, mcbp.StatusXattrInvalid, "The provided xattr segment is not valid")
			return 0, false, keep
		}
	}
	if meta {
		return f.Datatype, true, true
	}
	datatype = f.Datatype &^ dtJSON
	if body := withoutXattrsIf(plain, f.Datatype); json.Valid(body) {
		datatype |= dtJSON
	}
	return datatype, true, true
}

func withoutXattrsIf(v []byte, datatype uint8) []byte {
	if datatype&dtXattr == 0 {
		return v
	}
	return withoutXattrs(v)
}

const (
	xattrsFine = iota
	xattrsBroken
	xattrsNoJSON
)

// checkXattrs looks at a block of extended attributes: u32 length, and then for
// each u32 length, key, 0, value, 0. Values are JSON.
func checkXattrs(v []byte) int {
	if len(v) < 4 {
		return xattrsBroken
	}
	n := uint64(binary.BigEndian.Uint32(v))
	if n+4 > uint64(len(v)) {
		return xattrsBroken
	}
	for block := v[4 : 4+n]; len(block) > 0; {
		if len(block) < 4 {
			return xattrsBroken
		}
		size := uint64(binary.BigEndian.Uint32(block))
		if size < 2 || size+4 > uint64(len(block)) {
			return xattrsBroken
		}
		pair := block[4 : 4+size]
		block = block[4+size:]
		at := 0
		for at < len(pair) && pair[at] != 0 {
			at++
		}
		if at == len(pair) || pair[len(pair)-1] != 0 || at+1 > len(pair)-1 {
			return xattrsBroken
		}
		if !json.Valid(pair[at+1 : len(pair)-1]) {
			return xattrsNoJSON
		}
	}
	return xattrsFine
}

// readable is a value as GET gives it: without extended attributes, and without
// snappy and datatype where the client did not negotiate them.
func (c *conn) readable(it *item) ([]byte, uint8) {
	v, d := it.value, it.datatype
	if d&dtSnappy != 0 && (d&dtXattr != 0 || !c.has(mcbp.FeatureSnappy)) {
		if plain, err := snappy.Decode(nil, v); err == nil {
			v, d = plain, d&^dtSnappy
		}
	}
	if d&dtXattr != 0 {
		v, d = withoutXattrs(v), d&^dtXattr
	}
	if !c.datatype {
		d &^= dtJSON
	}
	return v, d
}

// limitTTL is the expiry of an item in a collection that has a limit.
func (v *vcopy) limitTTL(coll, expiry uint32) uint32 {
	if v.colls == nil {
		return expiry
	}
	st := v.colls.known[coll]
	if st == nil || st.maxTTL == 0 {
		return expiry
	}
	latest := uint32(time.Now().Unix()) + st.maxTTL
	if expiry == 0 || expiry > latest {
		return latest
	}
	return expiry
}

// errorMap serves GET_ERROR_MAP: names and attributes of the statuses that this
// server gives.
func (c *conn) errorMap(f *mcbp.Frame) {
	v := f.Value()
	if len(v) != 2 {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return
	}
	if binary.BigEndian.Uint16(v) == 0 {
		c.reply(f, mcbp.StatusNotFound, 0, nil, nil, nil)
		return
	}
	c.replyTyped(f, mcbp.StatusOK, uint8(mcbp.DatatypeJSON), errorMapDoc)
}

//go:embed errormap.json
var errorMapDoc []byte

// globalConfig serves GET_CLUSTER_CONFIG without a bucket: where the nodes are.
func (c *conn) globalConfig(f *mcbp.Frame) {
	c.replyTyped(f, mcbp.StatusOK, uint8(mcbp.DatatypeJSON), mustJSON(c.n.c.nodeServices(c.n)))
}
