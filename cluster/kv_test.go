package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cbpump/cbpump/internal/capture"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

func dial(t *testing.T, cfg KVConfig) *Conn {
	t.Helper()
	c, err := DialKV(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// replay plays a recorded server; the client's packets must be the recorded ones
// byte for byte. opaque is the first one in the recording.
func replay(t *testing.T, name string, opaque uint32) *Conn {
	t.Helper()
	rec, err := capture.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := capture.Listen(capture.ServeOptions{Compare: func(n int, recorded, got []byte) error {
		if !bytes.Equal(recorded, got) {
			return fmt.Errorf("packet %d: sent %x, recorded %x", n, got, recorded)
		}
		return nil
	}}, rec)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, KVConfig{Addr: srv.Addr(), Role: "source", Log: testLog(t)})
	t.Cleanup(func() {
		_ = c.Close()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
	c.opaque = opaque - 1
	return c
}

func TestRecordedLogins(t *testing.T) {
	good := bucketAccount(&KVConfig{Bucket: "beer", Password: "beerpw"})
	wrong := bucketAccount(&KVConfig{Bucket: "beer", Password: "wrong"})
	for _, version := range []string{"2.5.1", "3.0.3", "4.0"} {
		t.Run(version, func(t *testing.T) {
			ctx := t.Context()
			c := replay(t, version+"-sasl-cram-md5-good", 4097)
			if err := loginCramMD5(ctx, c, good); err != nil {
				t.Error(err)
			}
			noop(t, c)
			c = replay(t, version+"-sasl-plain-good", 4097)
			offered, err := c.mechanisms(ctx)
			if err != nil || strings.Join(offered, " ") != "CRAM-MD5 PLAIN" {
				t.Errorf("%q, %v", offered, err)
			}
			if err := loginPlain(ctx, c, good); err != nil {
				t.Error(err)
			}
			noop(t, c)
			denied := wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{"source node 127.0.0.1:", `bucket "beer"`, "0x20"}}
			c = replay(t, version+"-sasl-cram-md5-bad", 4097)
			denied.check(t, loginCramMD5(ctx, c, wrong))
			c = replay(t, version+"-sasl-plain-bad", 4097)
			denied.check(t, loginPlain(ctx, c, wrong))
		})
	}
	for _, version := range []string{"6.0", "7.0"} {
		c := replay(t, version+"-sasl-cram-md5-refused", 4097)
		if err := loginCramMD5(t.Context(), c, good); !errors.Is(err, errMechanism) {
			t.Errorf("%s: %v", version, err)
		}
		if version == "7.0" {
			drainCapture(t, c)
		}
	}
}

// drainCapture sends what else the recorded client sent, so that the player ends well.
func drainCapture(t *testing.T, c *Conn) {
	t.Helper()
	if _, err := c.ask(t.Context(), mcbp.OpSASLStep, 0, nil, []byte("SCRAM-SHA512"), []byte("c=biws,r=x,p=y")); err != nil {
		t.Error(err)
	}
	noop(t, c)
}

func noop(t *testing.T, c *Conn) {
	t.Helper()
	f, err := c.ask(t.Context(), mcbp.OpNoop, 0, nil, nil, nil)
	if err != nil || f.Status() != mcbp.StatusOK {
		t.Errorf("NOOP: %v, %v", f.Status(), err)
	}
}

func TestRecordedStats(t *testing.T) {
	for _, version := range []string{"2.5.1", "3.0.3", "4.0"} {
		t.Run(version, func(t *testing.T) {
			ctx := t.Context()
			c := replay(t, version+"-stats", 1)
			if err := c.WaitFlushed(ctx, time.Hour); err != nil {
				t.Error(err)
			}
			states := map[string]string{}
			err := c.Stats(ctx, "vbucket", func(name, value string) error { states[name] = value; return nil })
			if err != nil || states["vb_5"] != "active" || states["vb_6"] != "replica" || states["vb_9"] != "" {
				t.Errorf("%v, %v", states, err)
			}
			infos, err := c.VBucketDetails(ctx)
			want := map[uint16]VBInfo{5: {mcbp.VBActive, 3}, 6: {mcbp.VBReplica, 0}, 7: {mcbp.VBPending, 0}, 8: {mcbp.VBDead, 0}}
			if version == "2.5.1" {
				want[0] = VBInfo{mcbp.VBActive, 0}
			}
			if err != nil || fmt.Sprint(infos) != fmt.Sprint(want) {
				t.Errorf("%v, %v, want %v", infos, err, want)
			}
			seen := 0
			for _, group := range []string{"vbucket-details 5", "vbucket-seqno 5"} {
				if group == "vbucket-seqno 5" && version != "2.5.1" {
					if got, err := c.VBucketSeqno(ctx, 5); err != nil || got.High != 3 || got.UUID == 0 {
						t.Errorf("%+v, %v", got, err)
					}
					continue
				}
				if group == "vbucket-details 5" && version != "2.5.1" {
					if info, err := c.VBucketInfo(ctx, 5); err != nil || info != want[5] {
						t.Errorf("%+v, %v", info, err)
					}
					continue
				}
				err = c.Stats(ctx, group, func(string, string) error { seen++; return nil })
				wantError{code: "kv-status", says: []string{"stats " + group, "0x01", "Not found"}}.check(t, err)
				var status *StatusError
				if !errors.As(err, &status) || status.Status != mcbp.StatusNotFound || seen > 0 {
					t.Errorf("%v", err)
				}
			}
			c.opaque = 14
			for i, want := range []mcbp.VBState{mcbp.VBActive, mcbp.VBReplica, mcbp.VBPending, mcbp.VBDead, mcbp.VBAbsent} {
				if got, err := c.VBucketState(ctx, uint16(5+i)); err != nil || got != want {
					t.Errorf("vbucket %d: %v, %v, want %v", 5+i, got, err, want)
				}
			}
		})
	}
}

func TestRecordedGetMeta(t *testing.T) {
	c := replay(t, "4.0-getmeta", 1792)
	for _, q := range []struct {
		opaque uint32
		vb     uint16
		key    string
		want   mcbp.Status
	}{
		{1792, 160, "pushmeta1", 0}, {1793, 160, "pushmeta2", 0}, {1794, 160, "pushmeta\x00\x80", 0},
		{1808, 160, "pushmetanone", mcbp.StatusNotFound}, {1809, 161, "pushmeta1", mcbp.StatusNotMyVBucket}, {1810, 162, "pushmeta1", mcbp.StatusNotMyVBucket},
	} {
		f, err := c.RoundTrip(t.Context(), mcbp.AppendGetMeta(nil, q.opaque, q.vb, []byte(q.key)), q.opaque)
		if err != nil || f.Status() != q.want {
			t.Errorf("%+v: %v, %v", q, f.Status(), err)
		}
	}
}

// loginServer is a node whose logins go as told; it counts requests by opcode
// and mechanism.
func loginServer(t *testing.T, mechs string, status map[string]mcbp.Status) (addr string, asked *atomic.Value) {
	asked = &atomic.Value{}
	asked.Store("")
	var mu sync.Mutex
	var log []string
	return fakeKV(t, func(f mcbp.Frame) []byte {
		name := mcbp.OpcodeName(f.Opcode) + " " + string(f.Key())
		mu.Lock()
		log = append(log, name)
		asked.Store(strings.Join(log, ","))
		mu.Unlock()
		st, known := status[name]
		switch f.Opcode {
		case mcbp.OpSASLList:
			return reply(f, st, "", "", mechs)
		case mcbp.OpSASLAuth:
			if string(f.Key()) == "CRAM-MD5" && !known {
				return reply(f, mcbp.StatusAuthContinue, "", "", "<1@h>")
			}
		case mcbp.OpSASLStep:
			if !known && !bytes.Equal(f.Value(), mcbp.SASLCramMD5("beer", planted, []byte("<1@h>"))) {
				st = mcbp.StatusAuthError
			}
		}
		// A server that says back what it was given.
		return reply(f, st, "", "", "you sent "+string(f.Body))
	}), asked
}

func TestLogin(t *testing.T) {
	list, auth, step := mcbp.OpcodeName(mcbp.OpSASLList)+" ", mcbp.OpcodeName(mcbp.OpSASLAuth)+" ", mcbp.OpcodeName(mcbp.OpSASLStep)+" "
	for name, q := range map[string]struct {
		mechs  string
		status map[string]mcbp.Status
		asked  string
		want   *wantError
	}{
		"cram":                 {"PLAIN CRAM-MD5", nil, list + "," + auth + "CRAM-MD5," + step + "CRAM-MD5", nil},
		"cram beside scram":    {"SCRAM-SHA512 CRAM-MD5 PLAIN", nil, list + "," + auth + "CRAM-MD5," + step + "CRAM-MD5", nil},
		"plain":                {"PLAIN", nil, list + "," + auth + "PLAIN", nil},
		"cram unknown":         {"CRAM-MD5 PLAIN", map[string]mcbp.Status{auth + "CRAM-MD5": mcbp.StatusAuthError}, list + "," + auth + "CRAM-MD5," + auth + "PLAIN", nil},
		"cram unknown command": {"CRAM-MD5 PLAIN", map[string]mcbp.Status{auth + "CRAM-MD5": mcbp.StatusUnknown}, list + "," + auth + "CRAM-MD5," + auth + "PLAIN", nil},
		"wrong password": {"CRAM-MD5 PLAIN", map[string]mcbp.Status{step + "CRAM-MD5": mcbp.StatusAuthError}, list + "," + auth + "CRAM-MD5," + step + "CRAM-MD5",
			&wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{"0x20", `bucket "beer"`, "destination node"}}},
		"wrong password plain": {"PLAIN", map[string]mcbp.Status{auth + "PLAIN": mcbp.StatusAuthError}, list + "," + auth + "PLAIN", &wantError{class: pump.ClassDenied, code: "kv-denied"}},
		"odd status":           {"PLAIN", map[string]mcbp.Status{auth + "PLAIN": 0x99}, list + "," + auth + "PLAIN", &wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{"0x99"}}},
		"continue":             {"PLAIN", map[string]mcbp.Status{auth + "PLAIN": mcbp.StatusAuthContinue}, list + "," + auth + "PLAIN", &wantError{class: pump.ClassDenied, code: "kv-denied"}},
		"busy":                 {"PLAIN", map[string]mcbp.Status{auth + "PLAIN": mcbp.StatusTmpFail}, list + "," + auth + "PLAIN", &wantError{code: "kv-status", retry: true}},
		"cram busy":            {"CRAM-MD5", map[string]mcbp.Status{auth + "CRAM-MD5": mcbp.StatusTmpFail}, list + "," + auth + "CRAM-MD5", &wantError{code: "kv-status", retry: true}},
		"cram at once":         {"CRAM-MD5", map[string]mcbp.Status{auth + "CRAM-MD5": 0}, list + "," + auth + "CRAM-MD5", &wantError{code: "kv-status"}},
		"foreign":              {"GSSAPI\x1b[1m", nil, list, &wantError{class: pump.ClassDenied, code: "kv-no-login", says: []string{"GSSAPI"}}},
		"none":                 {"", nil, list, &wantError{class: pump.ClassDenied, code: "kv-no-login"}},
		"only cram, unknown":   {"CRAM-MD5", map[string]mcbp.Status{auth + "CRAM-MD5": mcbp.StatusAuthError}, list + "," + auth + "CRAM-MD5", &wantError{class: pump.ClassDenied, code: "kv-no-login"}},
		"no sasl":              {"", map[string]mcbp.Status{list: mcbp.StatusUnknown}, list, &wantError{class: pump.ClassDenied, code: "kv-no-login", says: []string{"memcached://"}}},
		"list refused":         {"", map[string]mcbp.Status{list: mcbp.StatusInternal}, list, &wantError{code: "kv-status"}},
	} {
		t.Run(name, func(t *testing.T) {
			addr, asked := loginServer(t, q.mechs, q.status)
			c, err := DialKV(t.Context(), KVConfig{Addr: addr, Role: "destination", Bucket: "beer", Password: planted, Log: testLog(t)})
			if err == nil {
				defer c.Close()
			}
			if q.want != nil {
				q.want.check(t, err)
			} else if err != nil {
				t.Error(err)
			}
			if asked.Load() != q.asked {
				t.Errorf("asked %q, want %q", asked.Load(), q.asked)
			}
		})
	}
}

func TestNoLogin(t *testing.T) {
	addr, asked := loginServer(t, "PLAIN", nil)
	for _, cfg := range []KVConfig{{Addr: addr}, {Addr: addr, Bucket: "default"}, {Addr: addr, Password: "x"}} {
		noop(t, dial(t, cfg))
	}
	if got := asked.Load().(string); strings.Contains(got, "SASL") {
		t.Error(got)
	}
	dial(t, KVConfig{Addr: addr, Bucket: "default", Password: planted})
	if got := asked.Load().(string); !strings.Contains(got, "SASL") {
		t.Error("no login to default with a password")
	}
	dial(t, KVConfig{Addr: addr, Bucket: "beer"}) // a bucket without a password logs in too
}

func TestDialFailures(t *testing.T) {
	closed := closedPort(t)
	talks := func(s string) string {
		return serve(t, func(nc net.Conn) {
			_, _ = nc.Read(make([]byte, 24))
			_, _ = io.WriteString(nc, s)
		})
	}
	tlsServer := httptest.NewTLSServer(nil)
	defer tlsServer.Close()
	web := httptest.NewServer(nil)
	defer web.Close()
	for name, q := range map[string]struct {
		addr string
		want wantError
	}{
		"closed port":  {closed, wantError{class: pump.ClassUnreachable, code: "unreachable", retry: true, says: []string{"nothing listens", closed, "source node"}}},
		"no port":      {"127.0.0.1", wantError{class: pump.ClassUsage, code: "usage", says: []string{"missing port"}}},
		"closes":       {talks(""), wantError{class: pump.ClassUnreachable, code: "kv-cut", retry: true, says: []string{"closed the connection", "11210", "TLS"}}},
		"cut":          {talks("\x81\x20\x00\x00\x00"), wantError{code: "kv-cut", retry: true, says: []string{"cut inside a packet"}}},
		"http":         {web.Listener.Addr().String(), wantError{class: pump.ClassUnreachable, code: "not-memcached", says: []string{"HTTP/1.1 400", "11210", "8091"}}},
		"tls alert":    {talks("\x15\x03\x01\x00\x02\x02\x46"), wantError{class: pump.ClassUnreachable, code: "speaks-tls", says: []string{"speaks TLS", "11207"}}},
		"text":         {talks("ERROR\r\n"), wantError{class: pump.ClassUnreachable, code: "not-memcached", says: []string{`"ERROR"`}}},
		"lying length": {talks("\x81\x20\xff\xff\x00\x00\x00\x00\x00\x00\x00\x01" + strings.Repeat("\x00", 12)), wantError{code: "kv-protocol"}},
		"4 GiB":        {talks("\x81\x20\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff" + strings.Repeat("\x00", 12)), wantError{code: "kv-protocol", says: []string{"beyond any document"}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DialKV(t.Context(), KVConfig{Addr: q.addr, Role: "source", Bucket: "beer", Password: planted, Log: testLog(t)})
			q.want.check(t, err)
		})
	}
}

func TestDialTimeouts(t *testing.T) {
	reached := make(chan struct{}, 4)
	addr := serve(t, func(nc net.Conn) {
		_, _ = nc.Read(make([]byte, 24))
		reached <- struct{}{}
		_, _ = nc.Read(make([]byte, 24))
	})
	_, err := DialKV(t.Context(), KVConfig{Addr: addr, Role: "source", Bucket: "beer", Password: planted, Timeout: time.Second})
	wantError{class: pump.ClassUnreachable, code: "kv-timeout", retry: true, says: []string{"no answer within 1s", addr}}.check(t, err)
	<-reached
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	_, err = DialKV(ctx, KVConfig{Addr: addr, Role: "source", Bucket: "beer", Password: planted, Timeout: time.Hour})
	wantError{class: pump.ClassInterrupted, code: "interrupted", says: []string{addr}}.check(t, err)
	_, err = DialKV(ctx, KVConfig{Addr: addr})
	wantError{class: pump.ClassInterrupted, code: "interrupted"}.check(t, err)
	_, err = DialKV(t.Context(), KVConfig{Addr: addr, Timeout: 1})
	wantError{class: pump.ClassUnreachable, code: "unreachable", retry: true}.check(t, err)
}

func TestRoundTripMatchesByOpaque(t *testing.T) {
	addr := fakeKV(t, func(f mcbp.Frame) []byte {
		if f.Opcode == mcbp.OpSetVBucket { // 2.5.1 answers a bad one twice
			r := reply(f, mcbp.StatusInvalid, "", "", "")
			return append(r, r...)
		}
		other := f
		other.Opaque += 1000
		request := mcbp.AppendNoop(nil, f.Opaque)
		wrongOp := f
		wrongOp.Opcode = mcbp.OpGet
		return bytes.Join([][]byte{reply(other, 1, "", "", "no"), request, reply(wrongOp, 2, "", "", "no"), reply(f, 0, "", "", "yes")}, nil)
	})
	c := dial(t, KVConfig{Addr: addr, Role: "destination"})
	err := c.SetVBucketState(t.Context(), 7, mcbp.VBActive)
	wantError{code: "kv-status", says: []string{"set vbucket 7 to active", "0x04", "destination node " + addr}}.check(t, err)
	f, err := c.ask(t.Context(), mcbp.OpVersion, 0, nil, nil, nil)
	if err != nil || string(f.Value()) != "yes" {
		t.Errorf("%q, %v", f.Value(), err)
	}
	if c.Addr() != addr || c.NetConn() == nil || c.Reader() == nil {
		t.Error("accessors")
	}
	err = c.SetVBucketState(t.Context(), 7, mcbp.VBAbsent)
	wantError{class: pump.ClassUsage, code: "usage"}.check(t, err)
	_, err = c.RoundTrip(t.Context(), []byte("x"), 1)
	wantError{code: "not-memcached"}.check(t, err)
}

func TestConversationBreaksOff(t *testing.T) {
	for name, q := range map[string]struct {
		handle func(nc net.Conn)
		want   wantError
	}{
		"closed":   {func(nc net.Conn) { _, _ = nc.Read(make([]byte, 24)) }, wantError{class: pump.ClassUnreachable, code: "kv-cut", retry: true}},
		"reset":    {func(nc net.Conn) { _, _ = nc.Read(make([]byte, 1)); _ = nc.(*net.TCPConn).SetLinger(0) }, wantError{class: pump.ClassUnreachable, code: "kv-cut", retry: true}},
		"in frame": {func(nc net.Conn) { _, _ = nc.Read(make([]byte, 24)); _, _ = nc.Write([]byte{0x81, 0x0b}) }, wantError{code: "kv-cut", retry: true}},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, KVConfig{Addr: serve(t, q.handle), Role: "source"})
			_, err := c.Version(t.Context())
			q.want.check(t, err)
			// What follows is told the same, and does not talk to the node.
			_, err = c.VBucketState(t.Context(), 1)
			q.want.check(t, err)
		})
	}
	c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return nil })})
	_ = c.Close()
	_ = c.Close()
	_, err := c.Version(t.Context())
	wantError{code: "kv-closed", says: []string{"our side"}}.check(t, err)
}

func TestParkedRequestTimesOut(t *testing.T) {
	addr := serve(t, func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) })
	c := dial(t, KVConfig{Addr: addr, Role: "source"})
	c.timeout = 5 * time.Millisecond
	_, err := c.VBucketState(t.Context(), 1)
	wantError{class: pump.ClassUnreachable, code: "kv-timeout", retry: true, says: []string{"no answer within 5ms"}}.check(t, err)
}

// TestAnswersToOthersDoNotKeepWaiting: packets of no interest do not renew the limit.
func TestAnswersToOthersDoNotKeepWaiting(t *testing.T) {
	addr := serve(t, func(nc net.Conn) {
		for {
			if _, err := nc.Write(mcbp.AppendNoop(nil, 99)); err != nil {
				return
			}
		}
	})
	c := dial(t, KVConfig{Addr: addr, Role: "source"})
	c.timeout = 20 * time.Millisecond
	_, err := c.Version(t.Context())
	wantError{class: pump.ClassUnreachable, code: "kv-timeout", retry: true}.check(t, err)
}

func TestGuard(t *testing.T) {
	asked := make(chan struct{}, 1)
	addr := serve(t, func(nc net.Conn) {
		buf := make([]byte, 24)
		for {
			if _, err := io.ReadFull(nc, buf); err != nil {
				return
			}
			asked <- struct{}{}
		}
	})
	c := dial(t, KVConfig{Addr: addr, Role: "source", Timeout: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	_, err := c.Version(ctx)
	wantError{class: pump.ClassInterrupted, code: "interrupted", says: []string{addr}}.check(t, err)

	// Nested guards: the inner one's end does not undo the outer one.
	c = dial(t, KVConfig{Addr: addr, Role: "source", Timeout: time.Hour})
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	outer := c.Guard(ctx)
	inner := c.Guard(ctx)
	for { // until both guards have fired
		c.mu.Lock()
		fired := c.fired
		c.mu.Unlock()
		if fired == 2 {
			break
		}
	}
	inner()
	inner()
	if err := c.SetIdle(time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := c.NetConn().Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("read under a guard that has fired: %v", err)
	}
	_, err = c.Reader().Next()
	wantError{class: pump.ClassInterrupted, code: "interrupted", says: []string{"read on"}}.check(t, c.Explain(ctx, "read on", err))
	outer()
	if c.fired != 0 {
		t.Errorf("%d guards left", c.fired)
	}
	c.Guard(t.Context())()
	if c.Explain(ctx, "x", nil) != nil {
		t.Error("nil explained")
	}
}

// stats answers with the given name, value pairs and an end.
func stats(f mcbp.Frame, pairs ...string) []byte {
	var b []byte
	for i := 0; i+1 < len(pairs); i += 2 {
		b = append(b, reply(f, 0, "", pairs[i], pairs[i+1])...)
	}
	return append(b, reply(f, 0, "", "", "")...)
}

func TestStatsCallback(t *testing.T) {
	addr := fakeKV(t, func(f mcbp.Frame) []byte {
		switch {
		case f.Opcode == mcbp.OpNoop:
			return reply(f, 0, "", "", "")
		case string(f.Key()) == "half":
			return append(reply(f, 0, "", "a", "1"), reply(f, mcbp.StatusTmpFail, "", "", "busy")...)
		}
		return stats(f, "a", "1", "empty", "", "b", "2")
	})
	c := dial(t, KVConfig{Addr: addr, Role: "source"})
	boom := errors.New("boom")
	var got []string
	err := c.Stats(t.Context(), "", func(name, value string) error {
		got = append(got, name+"="+value)
		if name == "empty" {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) || fmt.Sprint(got) != "[a=1 empty=]" {
		t.Errorf("%v, %v", got, err)
	}
	noop(t, c)
	if c.Reader().Buffered() != 0 {
		t.Error("the rest was not read over")
	}
	err = c.Stats(t.Context(), "half", func(string, string) error { return nil })
	wantError{code: "kv-status", retry: true, says: []string{"stats half", "0x86", "busy"}}.check(t, err)
	noop(t, c)
}

func TestWaitFlushed(t *testing.T) {
	var polls atomic.Int32
	addr := fakeKV(t, func(f mcbp.Frame) []byte {
		n := int(polls.Add(1))
		queue, todo := max(0, 5-n), 0
		if n == 5 {
			todo = 2
		}
		return stats(f, "uptime", "1", "ep_queue_size", strconv.Itoa(queue), "ep_flusher_todo", strconv.Itoa(todo))
	})
	c := dial(t, KVConfig{Addr: addr, Role: "source"})
	fake := &fakeClock{}
	c.clock = fake.clock()
	if err := c.WaitFlushed(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	ms := time.Millisecond
	if want := []time.Duration{5 * ms, 10 * ms, 20 * ms, 40 * ms, 80 * ms}; fmt.Sprint(fake.pauses) != fmt.Sprint(want) {
		t.Errorf("paused %v", fake.pauses)
	}

	stuck := fakeKV(t, func(f mcbp.Frame) []byte { return stats(f, "ep_queue_size", "7", "ep_flusher_todo", "3") })
	c = dial(t, KVConfig{Addr: stuck, Role: "source"})
	c.clock = (&fakeClock{}).clock()
	err := c.WaitFlushed(t.Context(), 30*time.Second)
	wantError{code: "not-flushed", retry: true, says: []string{"after 30s", "7 items queued", "3 being written", stuck}}.check(t, err)
	wantError{code: "not-flushed", retry: true}.check(t, c.WaitFlushed(t.Context(), 0))
	ctx, cancel := context.WithCancel(t.Context())
	c.clock = (&fakeClock{each: func(int) { cancel() }}).clock()
	wantError{class: pump.ClassInterrupted, code: "interrupted"}.check(t, c.WaitFlushed(ctx, time.Hour))

	for name, q := range map[string]struct {
		pairs []string
		want  wantError
	}{
		"memcached": {[]string{"pid", "1", "curr_items", "0"}, wantError{class: pump.ClassUsage, code: "no-flusher", says: []string{"memcached"}}},
		"half":      {[]string{"ep_queue_size", "0"}, wantError{class: pump.ClassUsage, code: "no-flusher"}},
		"text":      {[]string{"ep_queue_size", "none", "ep_flusher_todo", "0"}, wantError{code: "kv-protocol", says: []string{`ep_queue_size is "none"`}}},
		"negative":  {[]string{"ep_queue_size", "0", "ep_flusher_todo", "-1"}, wantError{code: "kv-protocol"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return stats(f, q.pairs...) }), Role: "source"})
			q.want.check(t, c.WaitFlushed(t.Context(), time.Hour))
		})
	}
}

func TestVBucketDetailsRefuses(t *testing.T) {
	for name, q := range map[string]struct {
		pairs []string
		says  string
	}{
		"state":          {[]string{"vb_5", "asleep", "vb_5:num_items", "1"}, `vbucket 5 is in state "asleep"`},
		"count":          {[]string{"vb_5", "active", "vb_5:num_items", "-1"}, `"-1" items`},
		"count overflow": {[]string{"vb_5", "active", "vb_5:num_items", "18446744073709551616"}, "items"},
		"no count":       {[]string{"vb_5", "active"}, "vbucket 5 comes without"},
		"no state":       {[]string{"vb_5:num_items", "3"}, "vbucket 5 comes without"},
		"number":         {[]string{"vb_65535", "active"}, `vbucket "65535"`},
		"leading zero":   {[]string{"vb_05", "active"}, `vbucket "05"`},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return stats(f, q.pairs...) }), Role: "source"})
			_, err := c.VBucketDetails(t.Context())
			wantError{code: "kv-protocol", says: []string{q.says, "vbucket-details", "source node"}}.check(t, err)
		})
	}
	c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte {
		return stats(f, "vb_0", "replica", "vb_0:num_items", "18446744073709551615", "vb_0:num_items_x", "z", "vb_0:x:num_items", "z",
			"vb_active", "9", "vb_", "x", "vb_:num_items", "1", "vb_1x", "active", "num_items", "q", "vb_active_num:num_items", "7")
	})})
	infos, err := c.VBucketDetails(t.Context())
	if err != nil || len(infos) != 1 || infos[0] != (VBInfo{mcbp.VBReplica, 1<<64 - 1}) {
		t.Errorf("%v, %v", infos, err)
	}
	if infos, err := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return stats(f) })}).VBucketDetails(t.Context()); err != nil || len(infos) != 0 {
		t.Errorf("%v, %v", infos, err)
	}
}

func TestVBucketStateRefuses(t *testing.T) {
	for name, q := range map[string]struct {
		status mcbp.Status
		value  string
		want   wantError
	}{
		"unknown":   {mcbp.StatusUnknown, "Unknown command", wantError{code: "kv-status", says: []string{"state of vbucket 9", "0x81", "Unknown command"}}},
		"busy":      {mcbp.StatusTmpFail, "", wantError{code: "kv-status", retry: true}},
		"no access": {mcbp.StatusAccess, "", wantError{class: pump.ClassDenied, code: "kv-denied"}},
		"short":     {mcbp.StatusOK, "\x00\x01", wantError{code: "kv-protocol", says: []string{"state of vbucket 9"}}},
		"state 9":   {mcbp.StatusOK, "\x00\x00\x00\x09", wantError{code: "kv-protocol"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return reply(f, q.status, "", "", q.value) }), Role: "source"})
			_, err := c.VBucketState(t.Context(), 9)
			q.want.check(t, err)
		})
	}
}

func TestVersionAnswer(t *testing.T) {
	for value, want := range map[string]string{"2.5.1-1083-rel": "2.5.1", "unknown": ""} {
		c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return reply(f, 0, "", "", value) }), Role: "source"})
		v, err := c.Version(t.Context())
		if want == "" {
			wantError{code: "kv-failed", says: []string{`"unknown" is not a version`}}.check(t, err)
		} else if err != nil || v.String() != want {
			t.Errorf("%v, %v", v, err)
		}
	}
	c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return reply(f, mcbp.StatusUnknown, "", "", "") })})
	_, err := c.Version(t.Context())
	wantError{code: "kv-status"}.check(t, err)
}

// TestDebianMemcached talks to a real server that is no Couchbase node.
func TestDebianMemcached(t *testing.T) {
	addr := closedPort(t)
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("memcached", "-l", "127.0.0.1", "-p", port, "-U", "0", "-B", "binary", "-u", "root", "-m", "8", "-t", "1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var c *Conn
	for end := time.Now().Add(10 * time.Second); c == nil; {
		var err error
		if c, err = DialKV(t.Context(), KVConfig{Addr: addr, Role: "destination"}); err != nil && time.Now().After(end) {
			t.Fatal(err)
		}
	}
	defer c.Close()
	v, err := c.Version(t.Context())
	if err != nil || !v.AtLeast(1, 4) {
		t.Errorf("%v, %v", v, err)
	}
	wantError{class: pump.ClassUsage, code: "no-flusher"}.check(t, c.WaitFlushed(t.Context(), time.Hour))
	_, err = c.VBucketState(t.Context(), 0)
	wantError{code: "kv-status", says: []string{"0x81"}}.check(t, err)
	_, err = DialKV(t.Context(), KVConfig{Addr: addr, Role: "destination", Bucket: "beer", Password: planted})
	wantError{class: pump.ClassDenied, code: "kv-no-login"}.check(t, err)

	cl, err := NewClient(addr, Config{Role: "destination", Username: "u", Password: planted})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	_, err = cl.Bucket(t.Context(), "beer")
	wantError{class: pump.ClassUnreachable, code: "rest-cut", retry: true, says: []string{"8091"}}.check(t, err)
}

func FuzzVBucketDetails(f *testing.F) {
	f.Add([]byte("vb_0\x00active\x00vb_0:num_items\x001\x00"))
	f.Add([]byte("vb_65535\x00dead\x00vb_:num_items\x00\x00"))
	f.Add([]byte("vb_01\x00replica\x00vb_1:num_items\x0018446744073709551616"))
	f.Fuzz(func(t *testing.T, text []byte) {
		d := vbDetails{}
		parts := strings.Split(string(text), "\x00")
		for i := 0; i+1 < len(parts); i += 2 {
			if d.add(parts[i], parts[i+1]) != nil {
				return
			}
		}
		infos, err := d.done()
		if err != nil {
			return
		}
		for vb, info := range infos {
			if info.State < mcbp.VBActive || info.State > mcbp.VBDead || vb == 0xffff {
				t.Fatalf("vbucket %d: %+v", vb, info)
			}
			if !strings.Contains(string(text), "vb_"+strconv.Itoa(int(vb))+"\x00") {
				t.Fatalf("vbucket %d from nowhere", vb)
			}
		}
	})
}

// FuzzConversation feeds a connection whatever bytes: it must end, with an error
// that is named, or with an answer.
func FuzzConversation(f *testing.F) {
	f.Add([]byte("\x81\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add(binary.BigEndian.AppendUint64(nil, 0x8110000000000007))
	f.Fuzz(func(t *testing.T, answer []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = theirs.Read(make([]byte, 64))
			_, _ = theirs.Write(answer)
			_ = theirs.Close()
		}()
		c := &Conn{nc: ours, sniff: &sniffConn{Conn: ours}, addr: "h:1", role: "source", timeout: time.Minute, clock: realClock}
		c.r = mcbp.NewReader(c.sniff)
		_, err := c.VBucketDetails(context.Background())
		if err != nil && (errors.Is(err, io.EOF) || pump.CodeOf(err) == "failed") {
			t.Fatalf("%v", err)
		}
		_ = ours.Close()
		<-done
	})
}
