package mcbp

import "github.com/couchbase/gomemcached"

// Opcodes that the hot paths use, and those that gomemcached does not name.
const (
	OpGet        = gomemcached.GET
	OpSet        = gomemcached.SET
	OpAdd        = gomemcached.ADD
	OpDelete     = gomemcached.DELETE
	OpQuit       = gomemcached.QUIT
	OpNoop       = gomemcached.NOOP
	OpVersion    = gomemcached.VERSION
	OpStat       = gomemcached.STAT
	OpGetQ       = gomemcached.GETQ
	OpSetQ       = gomemcached.SETQ
	OpAddQ       = gomemcached.ADDQ
	OpDeleteQ    = gomemcached.DELETEQ
	OpHello      = gomemcached.HELLO
	OpSASLList   = gomemcached.SASL_LIST_MECHS
	OpSASLAuth   = gomemcached.SASL_AUTH
	OpSASLStep   = gomemcached.SASL_STEP
	OpSetVBucket = gomemcached.SET_VBUCKET
	OpGetReplica = gomemcached.GET_REPLICA

	OpGetVBucket = Opcode(0x3e)
	OpDelVBucket = Opcode(0x3f)

	OpTapConnect         = gomemcached.TAP_CONNECT
	OpTapMutation        = gomemcached.TAP_MUTATION
	OpTapDelete          = gomemcached.TAP_DELETE
	OpTapFlush           = gomemcached.TAP_FLUSH
	OpTapOpaque          = gomemcached.TAP_OPAQUE
	OpTapVBucketSet      = gomemcached.TAP_VBUCKET_SET
	OpTapCheckpointStart = gomemcached.TAP_CHECKPOINT_START
	OpTapCheckpointEnd   = gomemcached.TAP_CHECKPOINT_END

	OpGetMeta         = gomemcached.GET_META
	OpSetWithMeta     = gomemcached.SET_WITH_META
	OpSetQWithMeta    = Opcode(0xa3)
	OpAddWithMeta     = gomemcached.ADD_WITH_META
	OpAddQWithMeta    = Opcode(0xa5)
	OpDeleteWithMeta  = gomemcached.DELETE_WITH_META
	OpDeleteQWithMeta = Opcode(0xa9)
)

// Statuses that decide a verdict (design notes, "KV sink").
const (
	StatusOK           = gomemcached.SUCCESS
	StatusNotFound     = gomemcached.KEY_ENOENT
	StatusExists       = gomemcached.KEY_EEXISTS
	StatusTooBig       = gomemcached.E2BIG
	StatusInvalid      = gomemcached.EINVAL
	StatusNotStored    = gomemcached.NOT_STORED
	StatusNotMyVBucket = gomemcached.NOT_MY_VBUCKET
	StatusNoBucket     = gomemcached.NO_BUCKET
	StatusLocked       = gomemcached.LOCKED
	StatusAuthError    = gomemcached.AUTH_ERROR
	StatusAuthContinue = gomemcached.AUTH_CONTINUE
	StatusRange        = gomemcached.ERANGE
	StatusAccess       = gomemcached.EACCESS
	StatusUnknown      = gomemcached.UNKNOWN_COMMAND
	StatusNoMemory     = gomemcached.ENOMEM
	StatusNotSupported = gomemcached.NOT_SUPPORTED
	StatusInternal     = gomemcached.EINTERNAL
	StatusBusy         = gomemcached.EBUSY
	StatusTmpFail      = gomemcached.TMPFAIL
)

// opcodeNames names what gomemcached leaves unnamed, or calls UPR.
var opcodeNames = map[Opcode]string{
	OpDcpOpen:            "DCP_OPEN",
	OpDcpAddStream:       "DCP_ADD_STREAM",
	OpDcpCloseStream:     "DCP_CLOSE_STREAM",
	OpDcpStreamReq:       "DCP_STREAM_REQ",
	OpDcpFailoverLog:     "DCP_GET_FAILOVER_LOG",
	OpDcpStreamEnd:       "DCP_STREAM_END",
	OpDcpSnapshotMarker:  "DCP_SNAPSHOT_MARKER",
	OpDcpMutation:        "DCP_MUTATION",
	OpDcpDeletion:        "DCP_DELETION",
	OpDcpExpiration:      "DCP_EXPIRATION",
	OpDcpFlush:           "DCP_FLUSH",
	OpDcpSetVBucketState: "DCP_SET_VBUCKET_STATE",
	OpDcpNoop:            "DCP_NOOP",
	OpDcpBufferAck:       "DCP_BUFFER_ACK",
	OpDcpControl:         "DCP_CONTROL",
	OpDcpSystemEvent:     "DCP_SYSTEM_EVENT",
	OpDcpPrepare:         "DCP_PREPARE",
	OpDcpSeqnoAck:        "DCP_SEQNO_ACKNOWLEDGED",
	OpDcpCommit:          "DCP_COMMIT",
	OpDcpAbort:           "DCP_ABORT",
	OpDcpSeqnoAdvanced:   "DCP_SEQNO_ADVANCED",
	OpDcpOSOSnapshot:     "DCP_OSO_SNAPSHOT",

	OpGetErrorMap:      "GET_ERROR_MAP",
	OpGetClusterConfig: "GET_CLUSTER_CONFIG",
	OpSetManifest:      "SET_COLLECTIONS_MANIFEST",
	OpGetManifest:      "GET_COLLECTIONS_MANIFEST",
	OpGetCollectionID:  "GET_COLLECTION_ID",
	OpGetScopeID:       "GET_SCOPE_ID",
	OpGetAllVBSeqnos:   "GET_ALL_VB_SEQNOS",

	OpGetVBucket:      "GET_VBUCKET",
	OpDelVBucket:      "DEL_VBUCKET",
	OpSetQWithMeta:    "SETQ_WITH_META",
	OpAddQWithMeta:    "ADDQ_WITH_META",
	OpDeleteQWithMeta: "DELETEQ_WITH_META",
}

// VBState is the state of a vbucket on one node.
type VBState uint32

// The states of a vbucket; 0 stands for "not on this node".
const (
	VBAbsent  VBState = 0
	VBActive  VBState = 1
	VBReplica VBState = 2
	VBPending VBState = 3
	VBDead    VBState = 4
)

func (s VBState) String() string {
	switch s {
	case VBAbsent:
		return "absent"
	case VBActive:
		return "active"
	case VBReplica:
		return "replica"
	case VBPending:
		return "pending"
	case VBDead:
		return "dead"
	}
	return "unknown"
}

// ParseVBState is the inverse of String for the names that servers use.
func ParseVBState(name string) (VBState, bool) {
	for _, s := range []VBState{VBActive, VBReplica, VBPending, VBDead} {
		if s.String() == name {
			return s, true
		}
	}
	return VBAbsent, false
}

// Bits of the datatype byte.
const (
	DatatypeJSON   = gomemcached.DatatypeFlagJSON
	DatatypeSnappy = gomemcached.DatatypeFlagCompressed
	DatatypeXattr  = gomemcached.DatatypeFlagXattrs
)
