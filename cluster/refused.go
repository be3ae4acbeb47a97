package cluster

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// Refused is the error of an answer with a status that the caller has no use for.
// op is what was asked, such as "stream vbucket 500". It makes no request, so it
// is for pipelined conversations too.
//
// No access (0x24, 0x20) is an error of class denied, code kv-denied, whose hint
// names the privilege that is missing; no bucket (0x08) is kv-no-bucket; an
// unknown collection or scope (0x88, 0x8c) is unknown-collection; others are
// kv-status, retryable where the server says "later". All wrap a StatusError.
func (c *Conn) Refused(op string, f *mcbp.Frame) error {
	said := explainBody(f.Value())
	e := &pump.Error{
		Code: "kv-status", Op: c.name() + ": " + op,
		Err: &StatusError{Status: f.Status(), Text: clip(said, 200), Name: c.errmap.name(f.Status())},
	}
	switch f.Status() {
	case mcbp.StatusTmpFail, mcbp.StatusBusy, mcbp.StatusNoMemory, mcbp.StatusSyncInProgress:
		e.Retry = true
	case mcbp.StatusAuthError, mcbp.StatusAccess:
		e.Class, e.Code = pump.ClassDenied, "kv-denied"
		e.Hint = accessHint(f.Opcode, said)
	case mcbp.StatusNoBucket:
		e.Code = "kv-no-bucket"
		e.Hint = "No bucket is selected on this connection: has it been deleted?"
	case mcbp.StatusUnknownCollection, mcbp.StatusUnknownScope:
		e.Code = "unknown-collection"
	default:
		e.Retry = c.errmap.retry(f.Status())
	}
	return e
}

// explainBody returns what the body of a refusal says: the context of the JSON
// that servers from 5.0 on send, or the text itself.
func explainBody(body []byte) string {
	var doc struct {
		Error struct {
			Context string `json:"context"`
		} `json:"error"`
	}
	if len(body) > 0 && body[0] == '{' && json.Unmarshal(body, &doc) == nil {
		return doc.Error.Context
	}
	return string(body)
}

// privileges are what requests need, for servers that do not say it in the answer.
var privileges = map[mcbp.Opcode]string{
	mcbp.OpDcpOpen:         "DcpProducer to read a stream, DcpConsumer to push one",
	mcbp.OpDcpStreamReq:    "DcpProducer, for everything that the stream would hold",
	mcbp.OpDcpAddStream:    "DcpConsumer",
	mcbp.OpGetAllVBSeqnos:  "MetaRead",
	mcbp.OpGetMeta:         "MetaRead",
	mcbp.OpSetWithMeta:     "MetaWrite",
	mcbp.OpAddWithMeta:     "MetaWrite",
	mcbp.OpDeleteWithMeta:  "MetaWrite",
	mcbp.OpSetQWithMeta:    "MetaWrite",
	mcbp.OpAddQWithMeta:    "MetaWrite",
	mcbp.OpDeleteQWithMeta: "MetaWrite",
	mcbp.OpSetVBucket:      "BucketManagement (a full administrator has it)",
	mcbp.OpGetVBucket:      "BucketManagement (a full administrator has it)",
	mcbp.OpStat:            "SimpleStats",
}

// accessHint names the privilege that is missing.
func accessHint(op mcbp.Opcode, said string) string {
	need := privileges[op]
	if _, rest, ok := strings.Cut(said, " without the "); ok {
		if name, _, ok := strings.Cut(rest, " privilege"); ok {
			need = clip(name, 60)
		}
	}
	if need == "" {
		return "The user lacks a permission on this bucket; use another one."
	}
	role := "a role that has it"
	if name := roles[need]; name != "" {
		role = "the role " + name
	}
	return fmt.Sprintf("The user lacks the privilege %s on this bucket; give it %s, or use another user.", need, role)
}

// roles are those of Couchbase Server that have a privilege and little else.
var roles = map[string]string{
	"DcpProducer": "data_dcp_reader (Data DCP Reader)",
	"DcpConsumer": "admin (Full Admin)",
	"MetaWrite":   "replication_target (XDCR Inbound)",
	"MetaRead":    "data_reader (Data Reader)",
	"Read":        "data_reader (Data Reader)",
	"Insert":      "data_writer (Data Writer)",
	"Upsert":      "data_writer (Data Writer)",
	"Delete":      "data_writer (Data Writer)",
}

// ErrorMap is what a server says of its statuses (GET_ERROR_MAP, 5.0 and later).
type ErrorMap map[mcbp.Status]ErrorInfo

// ErrorInfo is one status.
type ErrorInfo struct {
	Name  string   `json:"name"`  // "LOCK_ERROR"
	Text  string   `json:"desc"`  // what it means
	Attrs []string `json:"attrs"` // "retry-now", "retry-later", "fetch-config", …
}

// Is reports that the server calls a status by one of the attributes.
func (m ErrorMap) Is(s mcbp.Status, attributes ...string) bool {
	return slices.ContainsFunc(m[s].Attrs, func(a string) bool { return slices.Contains(attributes, a) })
}

func (m ErrorMap) name(s mcbp.Status) string { return clip(m[s].Name, 40) }

func (m ErrorMap) retry(s mcbp.Status) bool {
	return m.Is(s, "retry-now", "retry-later", "temp")
}

// ErrorMap asks the node for the names of its statuses, once per connection; from
// then on errors name statuses that are not known here. nil without an error
// where the node has none. Not on a connection with pipelined requests.
func (c *Conn) ErrorMap(ctx context.Context) (ErrorMap, error) {
	const op = "read the map of errors"
	if c.errmap != nil || !c.Has(mcbp.FeatureXerror) {
		return c.errmap, nil
	}
	f, err := c.ask(ctx, mcbp.OpGetErrorMap, 0, nil, nil, binary.BigEndian.AppendUint16(nil, 1))
	if err != nil {
		return nil, err
	}
	switch f.Status() {
	case mcbp.StatusOK:
	case mcbp.StatusNotFound, mcbp.StatusUnknown, mcbp.StatusNotSupported:
		return nil, nil
	default:
		return nil, c.Refused(op, &f)
	}
	m, err := parseErrorMap(f.Value())
	if err != nil {
		return nil, &pump.Error{Code: "kv-protocol", Op: c.name() + ": " + op, Err: err}
	}
	c.errmap = m
	return m, nil
}

func parseErrorMap(body []byte) (ErrorMap, error) {
	var doc struct {
		Errors map[string]ErrorInfo `json:"errors"`
	}
	if err := decodeJSON(body, &doc); err != nil {
		return nil, fmt.Errorf("the map of errors: %w", err)
	}
	if doc.Errors == nil {
		return nil, errors.New("the map of errors has no errors")
	}
	m := make(ErrorMap, len(doc.Errors))
	for number, info := range doc.Errors {
		n, err := strconv.ParseUint(number, 16, 16)
		if err != nil {
			return nil, fmt.Errorf("the map of errors has a status %s", quote(number))
		}
		m[mcbp.Status(n)] = info
	}
	return m, nil
}
