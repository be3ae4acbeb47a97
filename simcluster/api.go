package simcluster

import (
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/cbpump/cbpump/mcbp"
)

// Config says which cluster to play. The zero value is a cluster of two 2.5.1
// nodes on 127.0.0.1 with one bucket "default" of 64 vbuckets and one replica.
type Config struct {
	Nodes    int    // default 2
	VBuckets int    // per bucket, default 64; 1 to 1024
	Version  string // whose quirks are played: "2.5.1" (default), "3.0.3", "4.0", "4.6", "6.0.4", "6.6.5", "7.0.5", "7.6"

	Username, Password string // REST administrator; default "Administrator", "password"

	Buckets []BucketConfig // default: one bucket "default", no password, one replica

	Host string // address to listen on: "127.0.0.1" (default) or "::1"
	// AdvertiseHost is the host name in every document ("$HOST", "localhost" …).
	// Empty: Host, and "$HOST" in the terse documents, as servers that were never
	// given a name do.
	AdvertiseHost string

	Recovery           bool // serve the proposal's REST endpoints; that is the default anyway
	WithoutRecoveryAPI bool // answer 404 to them, as all real servers do

	// FlushDelay is how long a written item stays unflushed; until then ep_queue_size
	// counts it, and dumps miss it: all items on 3.0 and later, tombstones on 2.5.1,
	// which has the others in memory. 0 = flushed at once.
	FlushDelay time.Duration

	// WithoutKVMap leaves the cluster map out of NOT_MY_VBUCKET answers, as nodes do
	// that a cluster manager has not configured yet.
	WithoutKVMap bool

	TapWindow      int           // unacknowledged messages before a dump falls silent, default 10,000
	TapAckInterval int           // an acknowledgement is asked for on each n-th message, default 1,000
	TapNoop        time.Duration // a NOOP on an idle dump after this time, default 200 s
	TapBackoff     time.Duration // pause after a 0x85 or 0x86 acknowledgement, default 5 s

	// Users are the accounts of clusters from 5.0 on, beside Username and a user for
	// each bucket that has a password.
	Users []User

	TLS *TLSConfig // nil = no TLS ports
	// ExternalHost is a second name of every node, given as alternate address
	// "external" with the same ports. Empty: none.
	ExternalHost string

	// DCPFromDisk makes every stream begin with a backfill from disk.
	DCPFromDisk bool
	// CheckpointOpen is how long after a write a stream of the default collection
	// only (a client without collections, 7.0 and later) ends although its end lies
	// beyond that collection's last seqno; later it never ends. Default 5 s,
	// negative: never.
	CheckpointOpen time.Duration
	// WarmUp makes nodes answer as long as they load their data: an empty list of
	// seqnos, and 0x86 to reads and writes.
	WarmUp bool

	Log hclog.Logger // nil = silent
}

// BucketConfig is one bucket of a new cluster.
type BucketConfig struct {
	Name     string
	Password string // SASL password of user Name
	Type     string // "" or "membase"; "memcached" has no vbucket map
	Replicas int    // 0 to 3 copies beside the active one

	ConflictResolution string // "" or "seqno"; "lww" from 4.6 on
}

// Doc is one document, or one tombstone, as a vbucket holds it.
type Doc struct {
	Key, Value []byte
	Flags      uint32
	Expiry     uint32 // absolute Unix seconds, 0 = never
	CAS        uint64
	Rev        uint64
	Datatype   uint8
	Deleted    bool // a tombstone
	Seqno      uint64
	Collection uint32 // 0 = the default collection
	DeleteTime uint32 // Unix seconds, of a tombstone, from 5.0 on
	Expired    bool   // the tombstone of an item whose time was over, from 5.0 on
}

// Request is one REST request that may change state (all but GET and HEAD).
type Request struct {
	Node   string // REST address of the node that was asked
	Method string
	Path   string
	Form   string // the decoded form, encoded again in key order; values of "password" are left out
	Status int
}

// FaultAction is what a fault does when it strikes.
type FaultAction int

// What a fault can do.
const (
	// AnswerStatus answers Fault.Status without doing what was asked. On a message
	// that a dump is about to send it closes the connection before it.
	AnswerStatus FaultAction = iota
	// CutMidFrame does what was asked and closes inside the answer, or inside the
	// message of a dump; with CutAt after that many bytes of the dump.
	CutMidFrame
	// Close closes the connection without doing what was asked.
	Close
	// Stall never answers, never sends again, and keeps the connection open.
	Stall
	// Die kills the node before it does what was asked.
	Die
	// DropAfterEffect does what was asked and closes without answering.
	DropAfterEffect
	// OmitCloseBackfill leaves out OPAQUE 8 at the end of a complete dump, as real
	// servers do now and then. It looks at TAP_CONNECT.
	OmitCloseBackfill
	// Continue goes on as if nothing was: for Fault.Do alone.
	Continue
)

// Fault is a scripted failure of one node's KV port.
type Fault struct {
	Op  mcbp.Opcode   // of the request, or of the message that a dump sends; 0 = any
	Ops []mcbp.Opcode // if not empty, these and not Op: the way to name GET, which is 0

	VBucket int // -1 = any
	After   int // let this many matching requests or messages pass first
	Times   int // how often it strikes; 0 = for ever

	// Do is called when the fault strikes, before what Action does. The connection
	// waits for it. It may change the cluster: something else happens in mid-stream.
	// It is not called for faults of a whole dump or stream.
	Do     func()
	Status mcbp.Status
	Action FaultAction
	CutAt  int // CutMidFrame of a dump: after this many bytes of the whole stream
}

// RESTFault is a scripted failure of one node's REST port.
type RESTFault struct {
	Method string // "" = any
	Path   string // prefix of the path; "" = any
	After  int    // let this many matching requests pass first
	Times  int    // how often it strikes; 0 = for ever

	Status      int    // status to answer, default 500
	ContentType string // default "text/html"
	Body        string
	Stall       bool // never answer
	Close       bool // close the connection without an answer
	AfterEffect bool // do what was asked first, then fail
}
