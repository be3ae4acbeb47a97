package cluster

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// recordedSession replays a recording of 5.0 or later from its first packet: the
// agent and the nonces are those of the recording, everything else must come out
// byte for byte.
type recordedSession struct {
	*Conn
	t       *testing.T
	client  []mcbp.Frame // what the recorded client sent
	version Version
}

func session(t *testing.T, name string) *recordedSession {
	t.Helper()
	rec, err := capture.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	s := &recordedSession{t: t, Conn: replay(t, name, 4097)}
	if s.version, err = ParseVersion(name); err != nil {
		t.Fatal(err)
	}
	s.Conn.version = s.version
	packets, _ := rec.Packets(capture.Client)
	var nonces []string
	for _, p := range packets {
		f, err := mcbp.NewReader(bytes.NewReader(p)).Next()
		if err != nil {
			t.Fatal(err)
		}
		f.Body = bytes.Clone(f.Body)
		s.client = append(s.client, f)
		if f.Opcode == mcbp.OpHello && s.agent == agent {
			s.agent = string(f.Key())
		}
		if _, nonce, ok := strings.Cut(string(f.Value()), ",r="); ok && f.Opcode == mcbp.OpSASLAuth {
			nonces = append(nonces, nonce)
		}
	}
	s.nonce = func() string {
		if len(nonces) == 0 {
			t.Error("a login more than was recorded")
			return newNonce()
		}
		n := nonces[0]
		nonces = nonces[1:]
		return n
	}
	return s
}

// features are those of the n-th HELLO of the recording.
func (s *recordedSession) features(n int) []uint16 {
	for _, f := range s.client {
		if f.Opcode != mcbp.OpHello {
			continue
		}
		if n--; n < 0 {
			features, err := mcbp.ParseHello(f.Value())
			if err != nil {
				s.t.Fatal(err)
			}
			return features
		}
	}
	s.t.Fatal("no such HELLO in the recording")
	return nil
}

// account is the one that logs in.
func (s *recordedSession) account(user, password string) account {
	return userAccount(&KVConfig{Username: user, UserPassword: password, Role: "source"})
}

// begin does what most recordings begin with: HELLO, SCRAM-SHA512, bucket beer.
func (s *recordedSession) begin(user, password string) {
	s.t.Helper()
	if err := s.hello(s.t.Context(), s.features(0)); err != nil {
		s.t.Fatal(err)
	}
	if err := s.loginScram(s.t.Context(), "SCRAM-SHA512", s.account(user, password)); err != nil {
		s.t.Fatal(err)
	}
	if err := s.selectBucket(s.t.Context(), "beer", account{user: user}); err != nil {
		s.t.Fatal(err)
	}
}

// raw sends the n-th packet of the recording as it is.
func (s *recordedSession) raw(n int) mcbp.Frame {
	s.t.Helper()
	f := s.client[n]
	s.opaque = f.Opaque
	got, err := s.RoundTrip(s.t.Context(), append(f.Header.Append(nil), f.Body...), f.Opaque)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// status asks for a key and wants a status.
func (s *recordedSession) get(key string, want mcbp.Status) error {
	s.t.Helper()
	f, err := s.ask(s.t.Context(), mcbp.OpGet, 0, nil, []byte(key), nil)
	if err != nil {
		return err
	}
	if f.Status() != want {
		s.t.Errorf("GET %q: %s", key, mcbp.StatusName(f.Status()))
	}
	return s.Refused("get", &f)
}

var (
	denied   = wantError{class: pump.ClassDenied, code: "kv-denied"}
	badLogin = wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{"source node", "log in as user", "0x20", "-u, -p"}}
)

// userSessions are the recordings of logins to 6.0, 6.6 and 7.0.
var userSessions = map[string]func(t *testing.T, s *recordedSession){
	"6.0-login": login, "6.6-login": login, "7.0-login": login,

	"6.0-sasl-scram-sha512-good": goodScram,
	"6.0-sasl-scram-sha256-good": goodScram, "7.0-sasl-scram-sha256-good": goodScram,
	"6.0-sasl-scram-sha1-good": goodScram, "7.0-sasl-scram-sha1-good": goodScram,
	"6.0-sasl-plain-good": goodPlain, "7.0-sasl-plain-good": goodPlain,
	"6.0-sasl-plain-bad": func(t *testing.T, s *recordedSession) {
		badLogin.check(t, loginPlain(t.Context(), s.Conn, s.account("beer", "wrong")))
		noop(t, s.Conn)
	},
	"7.0-sasl-plain-bad": func(t *testing.T, s *recordedSession) {
		badLogin.check(t, loginPlain(t.Context(), s.Conn, s.account("beer", "wrong")))
		badLogin.check(t, loginPlain(t.Context(), s.Conn, s.account("nosuchuser", "x")))
		noop(t, s.Conn)
		if err := loginPlain(t.Context(), s.Conn, s.account("beer", "beerpw")); err != nil {
			t.Error(err)
		}
	},
	"6.0-sasl-scram-sha512-bad": func(t *testing.T, s *recordedSession) {
		badLogin.check(t, s.loginScram(t.Context(), "SCRAM-SHA512", s.account("beer", "wrong")))
		noop(t, s.Conn)
		if err := s.loginScram(t.Context(), "SCRAM-SHA512", s.account("beer", "beerpw")); err != nil {
			t.Error(err)
		}
	},
	"7.0-sasl-scram-sha512-bad": func(t *testing.T, s *recordedSession) {
		badLogin.check(t, s.loginScram(t.Context(), "SCRAM-SHA512", s.account("beer", "wrong")))
		badLogin.check(t, s.loginScram(t.Context(), "SCRAM-SHA512", s.account("nosuchuser", "x")))
		if err := s.loginScram(t.Context(), "SCRAM-SHA512", s.account("beer", "beerpw")); err != nil {
			t.Error(err)
		}
	},
	"6.0-sasl-scram-sha512-unknown-user": func(t *testing.T, s *recordedSession) {
		badLogin.check(t, s.loginScram(t.Context(), "SCRAM-SHA512", s.account("nosuchuser", "x")))
	},
	"6.0-sasl-scram-sha512-escaped-name": func(t *testing.T, s *recordedSession) {
		if err := s.loginScram(t.Context(), "SCRAM-SHA512", s.account("jan,=x", "pw=,x")); err != nil {
			t.Error(err)
		}
	},

	"6.0-select-bucket": func(t *testing.T, s *recordedSession) {
		selectAs(t, s, s.account("beer", "beerpw"))
		noop(t, s.Conn)
	},
	"6.0-select-bucket-admin": func(t *testing.T, s *recordedSession) {
		a := s.account("@admin", "password")
		if err := loginPlain(t.Context(), s.Conn, a); err != nil {
			t.Fatal(err)
		}
		if err := s.selectBucket(t.Context(), "beer", a); err != nil {
			t.Error(err)
		}
		wantError{class: pump.ClassUsage, code: "no-bucket", says: []string{`"nosuch"`, "0x01"}}.check(t, s.selectBucket(t.Context(), "nosuch", a))
	},
	"6.0-select-bucket-refused-no-xerror": func(t *testing.T, s *recordedSession) {
		a := s.account("beer", "beerpw")
		if err := loginPlain(t.Context(), s.Conn, a); err != nil {
			t.Fatal(err)
		}
		wantError{code: "kv-cut", retry: true, says: []string{"closed the connection"}}.check(t, s.selectBucket(t.Context(), "default", a))
	},
	"7.0-select-bucket": func(t *testing.T, s *recordedSession) {
		if err := s.hello(t.Context(), s.features(0)); err != nil {
			t.Fatal(err)
		}
		a := s.account("beer", "beerpw")
		if err := s.loginScram(t.Context(), "SCRAM-SHA512", a); err != nil {
			t.Fatal(err)
		}
		selectAll(t, s, a)
		noop(t, s.Conn)
		admin := s.account("@admin", "password")
		if err := loginPlain(t.Context(), s.Conn, admin); err != nil {
			t.Fatal(err)
		}
		wantError{class: pump.ClassUsage, code: "no-bucket"}.check(t, s.selectBucket(t.Context(), "nosuch", admin))
		if err := s.selectBucket(t.Context(), "beer", admin); err != nil {
			t.Error(err)
		}
	},

	"6.0-no-bucket-xerror": func(t *testing.T, s *recordedSession) {
		noAccess(t, s)
		noBucket(t, s)
	},
	"7.0-not-logged-in": func(t *testing.T, s *recordedSession) {
		noAccess(t, s)
		noop(t, s.Conn)
		if offered, err := s.mechanisms(t.Context()); err != nil || !onlyScram(offered) {
			t.Errorf("%q, %v", offered, err)
		}
		noBucket(t, s)
	},
	"6.0-no-bucket-no-xerror": func(t *testing.T, s *recordedSession) {
		if err := loginPlain(t.Context(), s.Conn, s.account("@admin", "password")); err != nil {
			t.Fatal(err)
		}
		wantError{code: "kv-cut", retry: true}.check(t, s.get("k", 0))
	},
	"6.0-not-logged-in-no-xerror": closesAtGet, "7.0-not-logged-in-no-xerror": closesAtGet,

	"6.0-hello": func(t *testing.T, s *recordedSession) {
		for n, want := range [][]uint16{{3, 6, 7, 8, 0xa, 0xb}, {3}} { // the second replaces the first
			if err := s.hello(t.Context(), s.features(n)); err != nil || !slices.Equal(s.granted, want) {
				t.Errorf("%x, %v", s.granted, err)
			}
		}
		if s.Has(mcbp.FeatureXattr) || !s.Has(featureNoDelay) {
			t.Errorf("%x", s.granted)
		}
	},
	"6.0-hello-refused": helloRefused, "7.0-hello-refused": helloRefused,
	"6.0-hello-all": helloAll, "6.6-hello-all": helloAll,
	// 7.0 answers with another magic from there on, which is why 0x0f is never asked for.
	"7.0-hello-all": func(t *testing.T, s *recordedSession) {
		helloAll(t, s)
		_, err := s.ask(t.Context(), mcbp.OpNoop, 0, nil, nil, nil)
		wantError{code: "not-memcached"}.check(t, err)
		for _, f := range s.client[2:] { // the rest of the recording
			if _, err := s.nc.Write(append(f.Header.Append(nil), f.Body...)); err != nil {
				t.Error(err)
			}
		}
		if err := s.nc.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(io.Discard, s.nc)
	},
}

func login(t *testing.T, s *recordedSession) {
	cfg := &KVConfig{Bucket: "beer", Username: "beer", UserPassword: "beerpw", Version: s.version}
	cfg.Features = s.features(0)
	if err := s.prepare(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	noop(t, s.Conn)
	for _, f := range cfg.Features {
		if !s.Has(f) {
			t.Errorf("0x%02x was not granted", f)
		}
	}
	if s.NodeVersion() != s.version {
		t.Error(s.NodeVersion())
	}
}

func goodPlain(t *testing.T, s *recordedSession) {
	if err := loginPlain(t.Context(), s.Conn, s.account("beer", "beerpw")); err != nil {
		t.Error(err)
	}
	noop(t, s.Conn)
}

func goodScram(t *testing.T, s *recordedSession) {
	mechanism := string(s.client[0].Key())
	if err := s.loginScram(t.Context(), mechanism, s.account("beer", "beerpw")); err != nil {
		t.Error(err)
	}
	noop(t, s.Conn)
}

func selectAs(t *testing.T, s *recordedSession, a account) {
	t.Helper()
	if err := s.hello(t.Context(), s.features(0)); err != nil {
		t.Fatal(err)
	}
	if err := loginPlain(t.Context(), s.Conn, a); err != nil {
		t.Fatal(err)
	}
	selectAll(t, s, a)
}

func selectAll(t *testing.T, s *recordedSession, a account) {
	t.Helper()
	if err := s.selectBucket(t.Context(), "beer", a); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"default", "nosuch"} {
		wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{quote(name), "0x24", `User "beer" may not use this bucket`}}.check(t, s.selectBucket(t.Context(), name, a))
	}
}

func noAccess(t *testing.T, s *recordedSession) {
	t.Helper()
	if err := s.hello(t.Context(), s.features(0)); err != nil {
		t.Fatal(err)
	}
	denied.check(t, s.get("k", mcbp.StatusAccess))
}

func noBucket(t *testing.T, s *recordedSession) {
	t.Helper()
	if err := loginPlain(t.Context(), s.Conn, s.account("@admin", "password")); err != nil {
		t.Fatal(err)
	}
	wantError{code: "kv-no-bucket", says: []string{"0x08", "No bucket is selected"}}.check(t, s.get("k", mcbp.StatusNoBucket))
}

func closesAtGet(t *testing.T, s *recordedSession) {
	wantError{class: pump.ClassUnreachable, code: "kv-cut", retry: true, says: []string{"closed the connection"}}.check(t, s.get(string(s.client[0].Key()), 0))
}

func helloRefused(t *testing.T, s *recordedSession) {
	for _, f := range s.client {
		got := s.raw(slices.IndexFunc(s.client, func(o mcbp.Frame) bool { return o.Opaque == f.Opaque }))
		wantError{code: "kv-status", says: []string{"0x04"}}.check(t, s.Refused("hello", &got))
	}
}

func helloAll(t *testing.T, s *recordedSession) {
	s.Conn.version = Version{7, 0, 0} // so that collections are asked for
	all := s.features(0)
	if err := s.hello(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	for _, f := range askable {
		if want := f != mcbp.FeatureCollections || s.version.AtLeast(6, 6); s.Has(f) != want {
			t.Errorf("0x%02x granted: %v", f, !want)
		}
	}
}

func TestRecordedUserLogins(t *testing.T) {
	for name, run := range userSessions {
		t.Run(name, func(t *testing.T) { run(t, session(t, name)) })
	}
	all, err := capture.Select(func(name string) bool {
		if strings.HasPrefix(name, "2.5.1") || strings.HasPrefix(name, "3.0.3") || strings.HasPrefix(name, "4.0") || strings.Contains(name, "cram-md5") ||
			strings.Contains(name, "-dcp-") || strings.Contains(name, "tap-connect") || strings.HasPrefix(name, "7.0-no-hello") || strings.Contains(name, "vb-seqnos") ||
			strings.Contains(name, "withmeta") {
			return false
		}
		for _, part := range []string{"login", "-sasl-", "-select-bucket", "-no-bucket", "-not-logged-in", "-hello"} {
			if strings.Contains(name, part) {
				return true
			}
		}
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if userSessions[c.Name] == nil {
			t.Errorf("%s is not replayed", c.Name)
		}
	}
	capture.Replays(t, "cluster.TestRecordedUserLogins", slices.Collect(maps.Keys(userSessions))...)
}

func TestRecordedAccess(t *testing.T) {
	for _, name := range []string{"6.0-access-read-only", "7.0-access-read-only"} {
		t.Run(name, func(t *testing.T) {
			s := session(t, name)
			s.begin("ro", "ropw")
			need := map[mcbp.Opcode]string{mcbp.OpSet: "Upsert", mcbp.OpSetWithMeta: "MetaWrite", mcbp.OpSetVBucket: "BucketManagement"}
			for n, f := range s.client {
				if need[f.Opcode] == "" && f.Opcode != mcbp.OpGet {
					continue
				}
				got := s.raw(n)
				if f.Opcode == mcbp.OpGet {
					continue
				}
				wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{"0x24", "lacks the privilege " + need[f.Opcode] + " on this bucket"}}.check(t, s.Refused("write", &got))
			}
			if name[0] == '6' { // the rest of the recording
				if seqnos, err := s.HighSeqnos(t.Context(), []uint16{10, 105}, mcbp.VBAbsent, 0); err != nil || seqnos[10] != 0x15 {
					t.Errorf("%v, %v", seqnos, err)
				}
				s.raw(len(s.client) - 2)
				s.raw(len(s.client) - 1)
			}
		})
	}
	// Without a body the request itself says what it needs.
	c := newConn(&KVConfig{Addr: "h:1", Role: "source"})
	f := mcbp.Frame{Header: mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpDcpStreamReq, VBucket: uint16(mcbp.StatusAccess)}}
	wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{"DcpProducer"}}.check(t, c.Refused("stream vbucket 5", &f))
	f.Opcode = mcbp.OpGet
	wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{"lacks a permission"}}.check(t, c.Refused("get", &f))
	for status, code := range map[mcbp.Status]string{mcbp.StatusUnknownCollection: "unknown-collection", mcbp.StatusUnknownScope: "unknown-collection", mcbp.StatusInvalid: "kv-status"} {
		f.VBucket = uint16(status)
		f.Body = []byte(`{"error":{"context":"said \u0007so","ref":"x"},"manifest_uid":"1"}`)
		wantError{code: code, says: []string{"said .so"}}.check(t, c.Refused("get", &f))
	}
	f.VBucket = uint16(mcbp.StatusSyncInProgress)
	wantError{code: "kv-status", retry: true}.check(t, c.Refused("set", &f))
}

func TestRecordedErrorMap(t *testing.T) {
	for _, name := range []string{"6.0-errormap", "7.0-errormap"} {
		s := session(t, name)
		s.granted = []uint16{mcbp.FeatureXerror}
		last := 1
		if name[0] == '7' {
			last = 2
			if err := s.hello(t.Context(), s.features(0)); err != nil {
				t.Fatal(err)
			}
		}
		m, err := s.ErrorMap(t.Context())
		if err != nil || m[mcbp.StatusNotFound].Name != "KEY_ENOENT" || !slices.Contains(m[mcbp.StatusTmpFail].Attrs, "retry-now") && !slices.Contains(m[mcbp.StatusTmpFail].Attrs, "retry-later") {
			t.Errorf("%s: %v, %v, %v", name, m[mcbp.StatusNotFound], m[mcbp.StatusTmpFail], err)
		}
		if again, err := s.ErrorMap(t.Context()); err != nil || len(again) != len(m) { // not asked twice
			t.Error(err)
		}
		got := s.raw(last)
		if name[0] == '6' && got.Status() != mcbp.StatusNotFound {
			t.Error(got.Status())
		}
		f := mcbp.Frame{Header: mcbp.Header{Magic: mcbp.MagicResponse, Opcode: mcbp.OpSet, VBucket: 0x23}}
		wantError{code: "kv-status", says: []string{"0x23", m[0x23].Name}}.check(t, s.Refused("set", &f))
	}
	for body, says := range map[string]string{
		"":                             "map of errors",
		"{}":                           "no errors",
		`{"errors":{"xyz":{}}}`:        `"xyz"`,
		`{"errors":{"12345":{}}}`:      `"12345"`,
		`{"errors":{"1":{"name":[]}}}`: "does not fit",
	} {
		if m, err := parseErrorMap([]byte(body)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, %v", body, m, err)
		}
	}
	addr := fakeKV(t, func(f mcbp.Frame) []byte { return reply(f, mcbp.StatusNotFound, "", "", "") })
	c := dial(t, KVConfig{Addr: addr})
	if m, err := c.ErrorMap(t.Context()); m != nil || err != nil {
		t.Error(m, err) // nothing was granted: not asked
	}
	c.granted = []uint16{mcbp.FeatureXerror}
	if m, err := c.ErrorMap(t.Context()); m != nil || err != nil {
		t.Error(m, err)
	}
}

// fakeNode is a data node from 5.0 on.
type fakeNode struct {
	version  string
	features []uint16 // granted
	mechs    string
	user     string
	password string // of SCRAM-SHA256
	plain    string // another password, checked by PLAIN only, as LDAP would
	bucket   string
	lies     string // what the server does wrong
	tls      *tls.Config
	answer   func(f mcbp.Frame) []byte // everything else

	mu    sync.Mutex
	asked []string
}

func (n *fakeNode) log() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.asked, ",")
}

func (n *fakeNode) start(t *testing.T) string {
	t.Helper()
	return serve(t, func(nc net.Conn) {
		if n.tls != nil {
			tc := tls.Server(nc, n.tls)
			if tc.Handshake() != nil {
				return
			}
			nc = tc
		}
		s := &fakeScram{node: n}
		r := mcbp.NewReader(nc)
		for {
			f, err := r.Next()
			if err != nil {
				return
			}
			out := n.reply(s, f)
			if out == nil {
				return
			}
			if _, err := nc.Write(out); err != nil {
				return
			}
		}
	})
}

func (n *fakeNode) reply(s *fakeScram, f mcbp.Frame) []byte {
	name := map[mcbp.Opcode]string{mcbp.OpHello: "hello", mcbp.OpSASLList: "list", mcbp.OpSASLAuth: "auth", mcbp.OpSASLStep: "step",
		mcbp.OpSelectBucket: "select", mcbp.OpVersion: "version"}[f.Opcode]
	if name != "" {
		if f.Opcode == mcbp.OpHello {
			name += fmt.Sprintf("%x", f.Value())
		} else if f.KeyLen > 0 {
			name += " " + string(f.Key())
		}
		n.mu.Lock()
		n.asked = append(n.asked, name)
		n.mu.Unlock()
	}
	switch f.Opcode {
	case mcbp.OpHello:
		if n.features == nil {
			return reply(f, mcbp.StatusUnknown, "", "", "")
		}
		asked, _ := mcbp.ParseHello(f.Value())
		var granted []byte
		for _, g := range n.features {
			if slices.Contains(asked, g) || g == 0x0f {
				granted = binary.BigEndian.AppendUint16(granted, g)
			}
		}
		return reply(f, 0, "", "", string(granted))
	case mcbp.OpSASLList:
		return reply(f, 0, "", "", n.mechs)
	case mcbp.OpVersion:
		return reply(f, 0, "", "", n.version)
	case mcbp.OpSASLAuth:
		if string(f.Key()) == "PLAIN" {
			if n.plain != "" && string(f.Value()) == "\x00"+n.user+"\x00"+n.plain {
				return reply(f, 0, "", "", "")
			}
			return reply(f, mcbp.StatusAuthError, "", "", "you sent "+string(f.Value()))
		}
		return s.first(f)
	case mcbp.OpSASLStep:
		return s.final(f)
	case mcbp.OpSelectBucket:
		if string(f.Key()) != n.bucket {
			return reply(f, mcbp.StatusAccess, "", "", "")
		}
		return reply(f, 0, "", "", "")
	}
	if n.answer == nil {
		return reply(f, 0, "", "", "")
	}
	return n.answer(f)
}

// fakeScram is the server's side of SCRAM-SHA256.
type fakeScram struct {
	node               *fakeNode
	bare, first1, user string
}

func (s *fakeScram) first(f mcbp.Frame) []byte {
	if string(f.Key()) != "SCRAM-SHA256" {
		return reply(f, mcbp.StatusNotSupported, "", "", "")
	}
	s.bare = strings.TrimPrefix(string(f.Value()), "n,,")
	user, nonce, _ := strings.Cut(s.bare, ",r=")
	s.user = strings.NewReplacer("=2C", ",", "=3D", "=").Replace(strings.TrimPrefix(user, "n="))
	salt, iterations := base64.StdEncoding.EncodeToString([]byte("salt")), "17"
	switch s.node.lies {
	case "yes at once":
		return reply(f, 0, "", "", "")
	case "nonce":
		nonce = "other"
	case "same nonce":
		s.first1 = "r=" + nonce + ",s=" + salt + ",i=17"
		return reply(f, mcbp.StatusAuthContinue, "", "", s.first1)
	case "iterations":
		iterations = "2000000000"
	case "salt":
		salt = "!"
	case "short":
		return reply(f, mcbp.StatusAuthContinue, "", "", "r="+nonce+"x")
	case "fields":
		return reply(f, mcbp.StatusAuthContinue, "", "", "x=1,y=2,z=3")
	}
	s.first1 = "r=" + nonce + "more,s=" + salt + ",i=" + iterations
	return reply(f, mcbp.StatusAuthContinue, "", "", s.first1)
}

func (s *fakeScram) final(f mcbp.Frame) []byte {
	mac := func(key []byte, text string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	salted, err := pbkdf2.Key(sha256.New, s.node.password, []byte("salt"), 17, 32)
	if err != nil {
		return nil
	}
	without, proof64, _ := strings.Cut(string(f.Value()), ",p=")
	message := s.bare + "," + s.first1 + "," + without
	key := mac(salted, "Client Key")
	stored := sha256.Sum256(key)
	proof, _ := base64.StdEncoding.DecodeString(proof64)
	for i, b := range mac(stored[:], message) {
		key[i] ^= b
	}
	if s.user != s.node.user || !hmac.Equal(proof, key) {
		return reply(f, mcbp.StatusAuthError, "", "", "you sent "+string(f.Value()))
	}
	v := "v=" + base64.StdEncoding.EncodeToString(mac(mac(salted, "Server Key"), message))
	switch s.node.lies {
	case "proof":
		v = "v=" + base64.StdEncoding.EncodeToString(make([]byte, 32))
	case "no proof":
		v = ""
	}
	return reply(f, 0, "", "", v)
}

const scrams = "SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN"

// TestUserLogin logs in to nodes of all kinds with DialKV.
func TestUserLogin(t *testing.T) {
	base := func() *fakeNode {
		return &fakeNode{version: "6.6.5-10080", features: []uint16{7, 8, 0xa, 0xb, 6, 0x12}, mechs: scrams, user: "jan,=x", password: planted, bucket: "beer"}
	}
	cfg := KVConfig{Role: "destination", Bucket: "beer", Username: "jan,=x", UserPassword: planted, Password: "s3cret"}
	auth := "list,auth SCRAM-SHA512,auth SCRAM-SHA256,step SCRAM-SHA256,"
	for name, q := range map[string]struct {
		change func(n *fakeNode, c *KVConfig)
		asked  string
		want   *wantError
		has    []uint16
	}{
		"known version":   {func(n *fakeNode, c *KVConfig) { c.Version = Version{6, 6, 5} }, "hello00070008," + auth + "select beer", nil, []uint16{7, 8}},
		"unknown version": {func(n *fakeNode, c *KVConfig) {}, "hello00070008," + auth + "select beer,version", nil, []uint16{7, 8}},
		"features": {func(n *fakeNode, c *KVConfig) { c.Version, c.Features = Version{6, 6, 5}, []uint16{0xb, 6, 0xb, 7} },
			"hello000600070008000b," + auth + "select beer", nil, []uint16{6, 7, 8, 0xb}},
		"collections of 6.6 are not asked for": {func(n *fakeNode, c *KVConfig) { c.Version, c.Features = Version{6, 6, 5}, []uint16{0x12} },
			"hello00070008," + auth + "select beer", nil, []uint16{7, 8}},
		"collections of 7.0": {func(n *fakeNode, c *KVConfig) { c.Version, c.Features = Version{7, 0, 5}, []uint16{0x12} },
			"hello000700080012," + auth + "select beer", nil, []uint16{7, 8, 0x12}},
		"collections of an unknown 7.0": {func(n *fakeNode, c *KVConfig) { n.version, c.Features = "7.6.2-1", []uint16{0x12} },
			"hello00070008," + auth + "select beer,version,hello000700080012", nil, []uint16{7, 8, 0x12}},
		"collections of an unknown 6.6": {func(n *fakeNode, c *KVConfig) { c.Features = []uint16{0x12} },
			"hello00070008," + auth + "select beer,version", nil, []uint16{7, 8}},
		"a version that is none": {func(n *fakeNode, c *KVConfig) { n.version = "unknown" }, "hello00070008," + auth + "select beer,version", nil, []uint16{7, 8}},
		"the bucket's own user": {func(n *fakeNode, c *KVConfig) {
			n.user, c.Username, c.UserPassword, c.Password = "beer", "", "", planted
		}, auth[:5] + "hello00070008," + auth[5:] + "select beer,version", nil, []uint16{7, 8}},
		"no bucket":  {func(n *fakeNode, c *KVConfig) { c.Bucket, c.Version = "", Version{7, 0, 0} }, "hello00070008," + strings.TrimSuffix(auth, ","), nil, nil},
		"no account": {func(n *fakeNode, c *KVConfig) { *c = KVConfig{Version: Version{7, 0, 0}} }, "hello00070008", nil, nil},
		"no password": {func(n *fakeNode, c *KVConfig) {
			*c = KVConfig{Role: "source", Bucket: "default", Version: Version{7, 0, 0}}
		}, "hello00070008",
			&wantError{class: pump.ClassDenied, code: "kv-no-user", says: []string{"-u, -p"}}, nil},
		"wrong password": {func(n *fakeNode, c *KVConfig) { c.Version, c.UserPassword = Version{7, 0, 0}, planted+"!" }, "hello00070008," + strings.TrimSuffix(auth, ","),
			&wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{`user "jan,=x"`, "-U, -P", "0x20"}}, nil},
		"wrong user": {func(n *fakeNode, c *KVConfig) { c.Version, c.Username = Version{7, 0, 0}, "x" }, "hello00070008," + strings.TrimSuffix(auth, ","), &denied, nil},
		"other bucket": {func(n *fakeNode, c *KVConfig) { c.Version, c.Bucket = Version{7, 0, 0}, "wine" }, "hello00070008," + auth + "select wine",
			&wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{`select bucket "wine"`, "role"}}, nil},
		"only plain, without TLS": {func(n *fakeNode, c *KVConfig) { c.Version, n.mechs = Version{7, 0, 0}, "PLAIN" }, "hello00070008,list",
			&wantError{class: pump.ClassDenied, code: "kv-plain-refused", says: []string{"clear text", "https://"}}, nil},
		"only cram, said to be 7.0": {func(n *fakeNode, c *KVConfig) { c.Version, n.mechs = Version{7, 0, 0}, "CRAM-MD5" }, "hello00070008,list",
			&wantError{class: pump.ClassDenied, code: "kv-no-login"}, nil},
		"an unknown server without HELLO": {func(n *fakeNode, c *KVConfig) { n.features, n.mechs, n.plain, n.user = nil, "PLAIN", "s3cret", "beer" },
			"hello00070008,list,auth PLAIN", nil, nil},
		"tracing": {func(n *fakeNode, c *KVConfig) { n.features = append(n.features, 0x0f) }, "hello00070008",
			&wantError{code: "kv-protocol", says: []string{"0x0f", "not asked for"}}, nil},
		"asks for tracing":        {func(n *fakeNode, c *KVConfig) { c.Features = []uint16{0x0f} }, "", &wantError{class: pump.ClassUsage, code: "usage", says: []string{"0x0f"}}, nil},
		"asks for TCP delay":      {func(n *fakeNode, c *KVConfig) { c.Features = []uint16{5} }, "", &wantError{class: pump.ClassUsage, code: "usage"}, nil},
		"the server cannot prove": {func(n *fakeNode, c *KVConfig) { n.lies, c.Version = "proof", Version{7, 0, 0} }, "hello00070008," + strings.TrimSuffix(auth, ","), &unproven, nil},
		"no proof":                {func(n *fakeNode, c *KVConfig) { n.lies, c.Version = "no proof", Version{7, 0, 0} }, "hello00070008," + strings.TrimSuffix(auth, ","), &unproven, nil},
		"yes at once": {func(n *fakeNode, c *KVConfig) { n.lies, c.Version = "yes at once", Version{7, 0, 0} },
			"hello00070008," + strings.TrimSuffix(auth, ",step SCRAM-SHA256,"), &unproven, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n, c := base(), cfg
			q.change(n, &c)
			c.Addr, c.Log = n.start(t), testLog(t)
			conn, err := DialKV(t.Context(), c)
			if err == nil {
				defer conn.Close()
				noop(t, conn)
				for _, f := range askable {
					if q.has != nil && conn.Has(f) != slices.Contains(q.has, f) {
						t.Errorf("feature 0x%02x granted: %v", f, conn.Has(f))
					}
				}
			}
			if q.want != nil {
				q.want.check(t, err)
			} else if err != nil {
				t.Error(err)
			}
			if got := n.log(); got != q.asked {
				t.Errorf("asked\n%s, want\n%s", got, q.asked)
			}
		})
	}
}

var unproven = wantError{class: pump.ClassDenied, code: "kv-server-proof", says: []string{"did not prove", "posing"}}

// TestScramLies: whatever a server says instead of its part ends the login, and
// the password is not tried in another way.
func TestScramLies(t *testing.T) {
	for lie, says := range map[string]string{
		"nonce": "not for us", "same nonce": "not for us", "iterations": "2000000000 SCRAM iterations", "salt": "malformed salt", "short": "incomplete", "fields": "lacks its nonce",
	} {
		n := &fakeNode{features: []uint16{7}, mechs: "SCRAM-SHA256 PLAIN", user: "u", password: planted, plain: planted, lies: lie}
		_, err := DialKV(t.Context(), KVConfig{Addr: n.start(t), Role: "source", Username: "u", UserPassword: planted, Version: Version{7, 0, 0}, Log: testLog(t)})
		wantError{class: pump.ClassDenied, code: "kv-protocol", says: []string{says}}.check(t, err)
		if got := n.log(); got != "hello00070008,list,auth SCRAM-SHA256" {
			t.Errorf("%s: asked %s", lie, got)
		}
	}
}

// TestHelloFails: what HELLO is answered with besides features.
func TestHelloFails(t *testing.T) {
	for name, q := range map[string]struct {
		answer func(f mcbp.Frame) []byte
		want   wantError
	}{
		"refused": {func(f mcbp.Frame) []byte {
			return reply(f, mcbp.StatusInvalid, "", "", `{"error":{"context":"VAttr needs XATTR"}}`)
		}, wantError{code: "kv-status", says: []string{"VAttr needs XATTR", "HELLO"}}},
		"odd":    {func(f mcbp.Frame) []byte { return reply(f, 0, "", "", "\x00") }, wantError{code: "kv-protocol"}},
		"closes": {func(f mcbp.Frame) []byte { return nil }, wantError{class: pump.ClassUnreachable, code: "kv-cut", retry: true}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DialKV(t.Context(), KVConfig{Addr: fakeKV(t, q.answer), Role: "source", Username: "u", UserPassword: planted})
			q.want.check(t, err)
		})
	}
}

// FuzzScram feeds a login whatever a server may answer.
func FuzzScram(f *testing.F) {
	f.Add([]byte("r=noncemore,s=c2FsdA==,i=1"), []byte("v=AAAA"))
	f.Add([]byte("r=nonce,s=,i=0"), []byte(""))
	f.Add([]byte("r=noncex,s=c2FsdA==,i=99999999999999999999"), []byte("e=other-error"))
	f.Fuzz(func(t *testing.T, first, last []byte) {
		if i := bytes.Index(first, []byte(",i=")); i >= 0 && len(first) > i+5 {
			return // so many iterations only take time
		}
		s := newScram("SCRAM-SHA1", "u,=", newSecret(planted), "nonce")
		answer, err := s.final(first)
		if err == nil && (!bytes.HasPrefix(answer, []byte("c=biws,r=nonce")) || bytes.Contains(answer, []byte(planted))) {
			t.Fatalf("%q", answer)
		}
		if err != nil {
			noLeak(t, err.Error())
		}
		if s.verify(last) == nil {
			t.Fatal("a proof by chance") // 160 bits
		}
	})
}

// TestScramNames: a name comes back from its escaped form, whatever it holds.
func TestScramNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.String().Draw(t, "name")
		first := string(newScram("SCRAM-SHA256", name, nil, "N").first())
		sent, ok := strings.CutPrefix(first, "n,,n=")
		sent, ok2 := strings.CutSuffix(sent, ",r=N")
		if !ok || !ok2 || strings.Contains(sent, ",") || strings.NewReplacer("=2C", ",", "=3D", "=").Replace(sent) != name {
			t.Fatalf("%q becomes %q", name, first)
		}
	})
	if a, b := newNonce(), newNonce(); a == b || len(a) != 32 || strings.Contains(a, ",") {
		t.Error(a, b)
	}
	if err := (&scram{}).verify([]byte("v=")); !errors.Is(err, errServerProof) || errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
