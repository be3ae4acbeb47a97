package cbb

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"strconv"

	"github.com/cbpump/cbpump/pump"
)

// Versions of the schema: a data file's user_version.
const (
	Version2004 = 2004 // tools up to 2.x, TAP
	Version2014 = 2014 // tools of 3.0
	Version2015 = 2015 // tools from 4.0; what is written here
)

// The values of the column cmd.
const (
	cmdTapMutation = 65
	cmdTapDelete   = 66
	cmdDcpMutation = 87
	cmdDcpDelete   = 88
)

// msgTable is the table of the rows.
const msgTable = "cbb_msg"

// columns of cbb_msg, in order; a version has the first so many.
var columns = [...]string{
	"cmd", "vbucket_id", "key", "flg", "exp", "cas", "meta", "val",
	"seqno", "dtype", "meta_size", "conf_res",
}

// columnCount returns the number of columns of a version, 0 for an unknown one.
func columnCount(version int) int {
	switch version {
	case Version2004:
		return 8
	case Version2014:
		return 11
	case Version2015:
		return 12
	}
	return 0
}

// The statements that make the tables of version 2015, to the byte as the
// tools of 4.0 give them.
const (
	createMsg = `CREATE TABLE cbb_msg
                     (cmd integer,
                      vbucket_id integer,
                      key blob,
                      flg integer,
                      exp integer,
                      cas text,
                      meta blob,
                      val blob,
                      seqno integer,
                      dtype integer,
                      meta_size integer,
                      conf_res integer)`
	createMeta = `CREATE TABLE cbb_meta
                     (key text,
                      val blob)`
)

// metaSize is what the tools of 4.0 write into meta_size of every row: the
// length of DCP's extended metadata when it says nothing but the conflict
// resolution, which conf_res repeats.
const metaSize = 5

// slotsKey is the row of cbb_meta in which a file of ours lists its slots; a file
// without rows has an empty list. Other tools ignore rows that they do not know.
const slotsKey = "cbpump.slots"

// Slots is the number of slots; see Slot.
const Slots = 16

// Slot returns the slot of a key: rows of the same key are always in the same
// one, so what is split by slots keeps the order of each key (invariant 5). It
// is the key's vbucket modulo Slots wherever a cluster has a multiple of Slots
// vbuckets, so a vbucket is not torn apart either.
func Slot(key []byte) int { return int(crc32.ChecksumIEEE(key)>>16) & 0x7fff % Slots }

// isDigits reports that p is a decimal number of at most 20 digits.
func isDigits(p []byte) bool {
	for _, c := range p {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(p) > 0 && len(p) <= 20
}

// parseDecimal reads an unsigned decimal number.
func parseDecimal(p []byte) (uint64, error) {
	if !isDigits(p) {
		return 0, fmt.Errorf("%s is not a decimal number below 2^64", quoteShort(p))
	}
	var n uint64
	for _, c := range p {
		d := uint64(c - '0')
		if n > (math.MaxUint64-d)/10 {
			return 0, fmt.Errorf("%s is not a decimal number below 2^64", quoteShort(p))
		}
		n = n*10 + d
	}
	return n, nil
}

// parseRev reads the column meta: eight raw bytes, nine of which the last is
// noise (TAP mutations of the 2.1 tool), or decimal text. Eight ASCII digits are
// text: as raw bytes they would be a revision above 3·10^18.
func parseRev(p []byte) (uint64, error) {
	switch {
	case len(p) == 0:
		return 0, nil
	case isDigits(p):
		return parseDecimal(p)
	case len(p) == 8 || len(p) == 9:
		return binary.BigEndian.Uint64(p), nil
	}
	return 0, fmt.Errorf("the revision %s is neither 8 or 9 raw bytes nor decimal text", quoteShort(p))
}

// parseCAS reads the column cas: decimal text, since SQLite's integers are signed.
func parseCAS(p []byte) (uint64, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return parseDecimal(p)
}

func quoteShort(p []byte) string {
	const most = 24
	if len(p) > most {
		return strconv.Quote(string(p[:most])) + "…"
	}
	return strconv.Quote(string(p))
}

// Fits returns why a backup folder cannot hold an item, or nil.
func Fits(it *pump.Item) error {
	switch {
	case len(it.Key) == 0 || len(it.Key) > math.MaxUint16:
		return errKey
	case it.Collection != nil && (it.Collection.Scope != "_default" || it.Collection.Name != "_default"):
		return errCollection
	case it.Seqno > math.MaxInt64:
		return errSeqno
	case len(it.Key)+len(it.Value) > maxRow:
		return errRow
	case it.Op > pump.Expiration:
		return errOp
	}
	return nil
}

// maxRow is the most bytes of key and value that a row takes: SQLite's own
// limit for a row is 10^9.
const maxRow = 1e9 - 4096

var (
	errKey        = &pump.Error{Code: "backup-key", Err: fmt.Errorf("a key has 1 to 65535 bytes")}
	errCollection = &pump.Error{Code: "backup-collection", Err: fmt.Errorf("backup folders have no place for collections"),
		Hint: "Write to a .jsonl file, which keeps them."}
	errSeqno = &pump.Error{Code: "backup-seqno", Err: fmt.Errorf("a sequence number above 2^63 does not fit a backup file")}
	errRow   = &pump.Error{Code: "backup-row", Err: fmt.Errorf("key and value are larger than SQLite's limit for a row")}
	errOp    = &pump.Error{Code: "backup-op", Err: fmt.Errorf("an item of an unknown kind")}
)
