package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

func TestRecordedSeqnos(t *testing.T) {
	ctx := t.Context()
	want := []uint16{0, 1}
	s := session(t, "7.0-all-vb-seqnos")
	s.begin("beer", "beerpw")
	is := func(what string, got map[uint16]uint64, err error, first, second uint64) {
		t.Helper()
		if err != nil || len(got) != 2 || got[0] != first || got[1] != second {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	got, err := s.HighSeqnos(ctx, want, mcbp.VBAbsent, 0)
	is("all", got, err, 12, 5)
	got, err = s.HighSeqnos(ctx, want, mcbp.VBActive, 0)
	is("active", got, err, 12, 5)
	got, err = s.CollectionHighSeqnos(ctx, want, 8, 0)
	is("collection 8", got, err, 9, 3)
	got, err = s.CollectionHighSeqnos(ctx, want, 0, 0)
	is("collection 0", got, err, 12, 0)
	s.raw(len(s.client) - 1)

	// The same server without collections tells of the default collection only.
	s = session(t, "7.0-all-vb-seqnos-no-hello")
	s.begin("beer", "beerpw")
	got, err = s.HighSeqnos(ctx, want, mcbp.VBAbsent, 0)
	is("no collections", got, err, 12, 0)
	_, err = s.CollectionHighSeqnos(ctx, want, 8, 0)
	wantError{class: pump.ClassUsage, code: "usage", says: []string{"not negotiated"}}.check(t, err)
	s.raw(len(s.client) - 1)

	// A vbucket whose manifest has no default collection is left out.
	s = session(t, "7.0-default-collection-dropped")
	s.begin("beer", "beerpw")
	for n := 4; n < 7; n++ {
		f := s.raw(n)
		wantError{code: "unknown-collection", says: []string{"0x88", "Unknown scope or collection"}}.check(t, s.Refused("write", &f))
	}
	_, err = s.HighSeqnos(ctx, []uint16{0x1f, 0x15}, mcbp.VBAbsent, 0)
	wantError{code: "seqnos-missing", retry: true, says: []string{"1 of 2 vbuckets, such as 21", "it lists 5"}}.check(t, err)
	for n := 8; n < len(s.client); n++ {
		s.raw(n)
	}
}

// TestHighSeqnosWaits: an empty list is a node that warms up, not an empty node.
func TestHighSeqnosWaits(t *testing.T) {
	asked := 0
	list := func(vbs ...uint16) string {
		var b []byte
		for _, vb := range vbs {
			b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint16(b, vb), uint64(vb)*10)
		}
		return string(b)
	}
	addr := fakeKV(t, func(f mcbp.Frame) []byte {
		asked++
		switch {
		case asked == 1:
			return reply(f, 0, "", "", "")
		case asked == 2:
			return reply(f, mcbp.StatusTmpFail, "", "", "")
		case asked == 3:
			return reply(f, 0, "", "", list(1, 5))
		}
		return reply(f, 0, "", "", list(1, 2, 3, 5))
	})
	c := dial(t, KVConfig{Addr: addr, Role: "source"})
	fake := &fakeClock{}
	c.clock = fake.clock()
	got, err := c.HighSeqnos(t.Context(), []uint16{2, 3}, mcbp.VBActive, time.Minute)
	if err != nil || fmt.Sprint(got) != "map[2:20 3:30]" || len(fake.pauses) != 3 {
		t.Errorf("%v, %v after %v", got, err, fake.pauses)
	}
	if got, err := c.HighSeqnos(t.Context(), nil, mcbp.VBAbsent, 0); err != nil || len(got) != 0 {
		t.Error(got, err) // nothing was wanted
	}

	empty := fakeKV(t, func(f mcbp.Frame) []byte { return reply(f, 0, "", "", "") })
	c = dial(t, KVConfig{Addr: empty, Role: "source"})
	c.clock = (&fakeClock{}).clock()
	_, err = c.HighSeqnos(t.Context(), []uint16{7, 8}, mcbp.VBActive, 30*time.Second)
	wantError{code: "seqnos-missing", retry: true, says: []string{"after 30s", "2 of 2 vbuckets, such as 7", "warm up"}}.check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	c.clock = (&fakeClock{each: func(int) { cancel() }}).clock()
	_, err = c.HighSeqnos(ctx, []uint16{7}, mcbp.VBActive, time.Hour)
	wantError{class: pump.ClassInterrupted, code: "interrupted"}.check(t, err)

	for status, want := range map[mcbp.Status]wantError{
		mcbp.StatusAccess:  {class: pump.ClassDenied, code: "kv-denied", says: []string{"MetaRead"}},
		mcbp.StatusUnknown: {code: "kv-status", says: []string{"0x81"}},
	} {
		c = dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return reply(f, status, "", "", "") }), Role: "source"})
		_, err = c.HighSeqnos(t.Context(), []uint16{7}, mcbp.VBActive, time.Hour)
		want.check(t, err)
	}
	c = dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return reply(f, 0, "", "", "123") }), Role: "source"})
	_, err = c.HighSeqnos(t.Context(), []uint16{7}, mcbp.VBActive, time.Hour)
	wantError{code: "kv-protocol"}.check(t, err)
}

func TestVBucketSeqno(t *testing.T) {
	c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte {
		switch string(f.Key()) {
		case "vbucket-seqno 5":
			return stats(f, "vb_5:high_seqno", "9", "vb_5:abs_high_seqno", "9", "vb_5:purge_seqno", "2", "vb_5:uuid", "18446744073709551615", "vb_5:last_persisted_seqno", "8", "vb_6:uuid", "x")
		case "vbucket-seqno 6":
			return stats(f, "vb_6:high_seqno", "9")
		case "vbucket-seqno 7":
			return stats(f, "vb_7:high_seqno", "-1", "vb_7:uuid", "1")
		}
		return reply(f, mcbp.StatusNotMyVBucket, "", "", "")
	}), Role: "source"})
	if got, err := c.VBucketSeqno(t.Context(), 5); err != nil || got != (VBSeqno{High: 9, UUID: 1<<64 - 1, Purged: 2, Persisted: 8}) {
		t.Errorf("%+v, %v", got, err)
	}
	_, err := c.VBucketSeqno(t.Context(), 6)
	wantError{code: "kv-protocol", says: []string{"vbucket 6 comes without"}}.check(t, err)
	_, err = c.VBucketSeqno(t.Context(), 7)
	wantError{code: "kv-protocol", says: []string{`high_seqno "-1"`}}.check(t, err)
	_, err = c.VBucketSeqno(t.Context(), 8)
	if !isStatus(err, mcbp.StatusNotMyVBucket) {
		t.Error(err)
	}
}

// TestRecordedDcpOpen opens DCP connections as the recorded clients did, whose
// streams then came.
func TestRecordedDcpOpen(t *testing.T) {
	ctx := t.Context()
	s := session(t, "6.0-dcp-stream")
	s.begin("beer", "beerpw")
	if _, err := s.HighSeqnos(ctx, []uint16{100}, mcbp.VBAbsent, 0); err != nil {
		t.Error(err)
	}
	_, err := s.FailoverLog(ctx, 100) // 6.0 answers it, 6.6 closes the connection
	wantError{class: pump.ClassUsage, code: "usage", says: []string{"not a DCP connection"}}.check(t, err)
	s.raw(5)
	opened, err := s.OpenDcp(ctx, DcpConfig{Name: "rec-dcp", BufferSize: 1 << 20, NoopInterval: 20 * time.Second})
	if err != nil || opened != (DcpOpened{Xattrs: true, DeleteTimes: true, Noop: true, FlowControl: true}) {
		t.Errorf("%+v, %v", opened, err)
	}
	_, err = s.OpenDcp(ctx, DcpConfig{Name: "again"})
	wantError{class: pump.ClassUsage, code: "usage", says: []string{"one already"}}.check(t, err)
	finish(t, s, 10)

	s = session(t, "7.0-dcp-collections")
	s.begin("beer", "beerpw")
	s.Conn.version = Version{6, 0, 0} // the recorded client did not ask for expirations
	opened, err = s.OpenDcp(ctx, DcpConfig{Name: "rec-dcp-collections"})
	if err != nil || opened != (DcpOpened{Xattrs: true, DeleteTimes: true, Noop: true}) {
		t.Errorf("%+v, %v", opened, err)
	}
	finish(t, s, 6)

	for _, version := range []string{"3.0.3", "4.0"} {
		s = session(t, version+"-dcp-stream")
		s.opaque = 0
		opened, err = s.OpenDcp(ctx, DcpConfig{Name: "rec-dcp", BufferSize: 300})
		if err != nil || opened != (DcpOpened{FlowControl: true}) {
			t.Errorf("%+v, %v", opened, err)
		}
		finish(t, s, 2)
	}

	s = session(t, "2.5.1-dcp-unknown")
	s.opaque = s.client[0].Opaque - 1
	_, err = s.OpenDcp(ctx, DcpConfig{Name: string(s.client[0].Key())})
	wantError{class: pump.ClassUsage, code: "no-dcp", says: []string{"0x81", "protocol=tap"}}.check(t, err)

	s = session(t, "6.6-dcp-failover-log")
	s.begin("beer", "beerpw")
	s.raw(4)
	s.dcp = true
	if log, err := s.FailoverLog(ctx, 0x67); err != nil || len(log) != 1 || log[0] != (mcbp.FailoverEntry{UUID: 0x1ca34d91a1a0}) {
		t.Errorf("%v, %v", log, err)
	}
	s = session(t, "6.6-dcp-failover-log-not-dcp")
	s.begin("beer", "beerpw")
	f := s.raw(4)
	wantError{code: "kv-status", says: []string{"0x04", "can only be sent on a DCP connection"}}.check(t, s.Refused("failover log", &f))
	if _, err := s.r.Next(); err != io.EOF {
		t.Errorf("6.6 keeps the connection: %v", err)
	}
}

// finish sends what is left of a recording and reads everything.
func finish(t *testing.T, s *recordedSession, from int) {
	t.Helper()
	for _, f := range s.client[from:] {
		if _, err := s.nc.Write(append(f.Header.Append(nil), f.Body...)); err != nil {
			t.Error(err)
		}
	}
	for {
		f, err := s.r.Next()
		if err != nil {
			t.Error(err)
			return
		}
		if f.Opcode == mcbp.OpDcpStreamEnd {
			return
		}
	}
}

// TestOpenDcp: what is asked of which version; the wrong flag closes the connection.
func TestOpenDcp(t *testing.T) {
	for name, q := range map[string]struct {
		version  Version
		features []uint16
		cfg      DcpConfig
		refuse   string // a CONTROL that is refused
		flags    uint32
		controls string
		want     DcpOpened
		err      *wantError
	}{
		"4.0":                {Version{4, 0, 0}, nil, DcpConfig{NoopInterval: time.Minute, BufferSize: 5}, "", 1, "enable_noop=true set_noop_interval=60 connection_buffer_size=5", DcpOpened{Noop: true, FlowControl: true}, nil},
		"5.0":                {Version{5, 0, 0}, []uint16{6}, DcpConfig{}, "", 5, "enable_noop=true", DcpOpened{Xattrs: true, Noop: true}, nil},
		"5.5":                {Version{5, 5, 0}, []uint16{6}, DcpConfig{}, "", 0x25, "enable_noop=true", DcpOpened{Xattrs: true, DeleteTimes: true, Noop: true}, nil},
		"6.5":                {Version{6, 5, 0}, nil, DcpConfig{}, "", 0x21, "enable_expiry_opcode=true", DcpOpened{DeleteTimes: true, Expirations: true}, nil},
		"7.0":                {Version{7, 0, 0}, []uint16{0x12}, DcpConfig{}, "enable_expiry_opcode", 0x21, "enable_noop=true enable_expiry_opcode=true", DcpOpened{DeleteTimes: true, Noop: true}, nil},
		"unknown":            {Version{}, nil, DcpConfig{}, "", 1, "", DcpOpened{}, nil},
		"consumer":           {Version{7, 0, 0}, []uint16{6, 0x12}, DcpConfig{Consumer: true, BufferSize: 9}, "", 0x20, "", DcpOpened{DeleteTimes: true}, nil},
		"old consumer":       {Version{4, 0, 0}, nil, DcpConfig{Consumer: true}, "", 0, "", DcpOpened{}, nil},
		"no noop":            {Version{7, 0, 0}, []uint16{0x12}, DcpConfig{}, "enable_noop", 0x21, "enable_noop=true", DcpOpened{}, &wantError{code: "kv-status", says: []string{"set DCP enable_noop"}}},
		"noop is not needed": {Version{4, 0, 0}, nil, DcpConfig{NoopInterval: time.Second}, "enable_noop", 1, "enable_noop=true set_noop_interval=1", DcpOpened{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var flags uint32
			var controls []string
			addr := fakeKV(t, func(f mcbp.Frame) []byte {
				switch f.Opcode {
				case mcbp.OpDcpOpen:
					flags = binary.BigEndian.Uint32(f.Extras()[4:])
				case mcbp.OpDcpControl:
					controls = append(controls, string(f.Key())+"="+string(f.Value()))
					if string(f.Key()) == q.refuse {
						return reply(f, mcbp.StatusInvalid, "", "", "")
					}
				}
				return reply(f, 0, "", "", "")
			})
			c := dial(t, KVConfig{Addr: addr, Role: "source"})
			c.version, c.granted = q.version, q.features
			q.cfg.Name = "n"
			got, err := c.OpenDcp(t.Context(), q.cfg)
			if q.err != nil {
				q.err.check(t, err)
			} else if err != nil || got != q.want {
				t.Errorf("%+v, %v, want %+v", got, err, q.want)
			}
			if flags != q.flags || strings.Join(controls, " ") != q.controls {
				t.Errorf("flags 0x%x, controls %s; want 0x%x, %s", flags, controls, q.flags, q.controls)
			}
		})
	}
	c := dial(t, KVConfig{Addr: fakeKV(t, func(f mcbp.Frame) []byte { return reply(f, mcbp.StatusAccess, "", "", "") }), Role: "source"})
	for _, name := range []string{"", strings.Repeat("x", 201)} {
		_, err := c.OpenDcp(t.Context(), DcpConfig{Name: name})
		wantError{class: pump.ClassUsage, code: "usage", says: []string{"1 to 200 bytes"}}.check(t, err)
	}
	_, err := c.OpenDcp(t.Context(), DcpConfig{Name: "x"})
	wantError{class: pump.ClassDenied, code: "kv-denied", says: []string{"DcpProducer"}}.check(t, err)
}

func TestRecordedMaps(t *testing.T) {
	ctx := t.Context()
	for _, name := range []string{"6.0-not-my-vbucket", "7.0-not-my-vbucket"} {
		t.Run(name, func(t *testing.T) {
			s := session(t, name)
			s.begin("beer", "beerpw")
			maps := 0
			for n, f := range s.client {
				if n < 4 {
					continue
				}
				if f.Opcode == mcbp.OpGetClusterConfig {
					s.opaque = f.Opaque - 1
					m, err := s.ClusterMap(ctx)
					checkRecordedMap(t, &m, err)
					continue
				}
				got := s.raw(n)
				if got.Status() != mcbp.StatusNotMyVBucket {
					continue
				}
				maps++
				m, err := s.MapFrom(got.Value())
				checkRecordedMap(t, &m, err)
			}
			if maps < 5 {
				t.Errorf("%d maps", maps)
			}
		})
	}
	for _, name := range []string{"6.0-not-my-vbucket-no-map", "7.0-not-my-vbucket-no-map"} {
		t.Run(name, func(t *testing.T) {
			s := session(t, name)
			s.begin("beer", "beerpw")
			for n, f := range s.client {
				switch {
				case n < 4:
				case f.Opcode == mcbp.OpGetClusterConfig:
					s.opaque = f.Opaque - 1
					if _, err := s.ClusterMap(ctx); !errors.Is(err, ErrNoMap) {
						t.Error(err)
					}
				default:
					got := s.raw(n)
					if _, err := s.MapFrom(got.Value()); got.Status() == mcbp.StatusNotMyVBucket && !errors.Is(err, ErrNoMap) {
						t.Error(err)
					}
				}
			}
		})
	}
}

func checkRecordedMap(t *testing.T, m *Map, err error) {
	t.Helper()
	if err != nil || m.Rev != 7 || m.Len() == 0 || !slices.Equal(m.Servers, []string{"127.0.0.1:11210", "127.0.0.1:11212"}) {
		t.Errorf("%+v, %v", m, err)
		return
	}
	if a, ok := m.Active(1); !ok || a != "127.0.0.1:11212" {
		t.Errorf("vbucket 1 is on %q", a)
	}
	if older := (&Map{Rev: 6, RevEpoch: m.RevEpoch}); !m.Newer(older) || older.Newer(m) || m.Newer(m) || !(&Map{RevEpoch: m.RevEpoch + 1}).Newer(m) {
		t.Error("the order of revisions")
	}
}

func TestMapFrom(t *testing.T) {
	const ext = `"nodesExt":[
		{"services":{"mgmt":8091,"mgmtSSL":18091,"kv":11210,"kvSSL":11207},"thisNode":true,
		 "alternateAddresses":{"external":{"hostname":"out1","ports":{"kv":31210,"kvSSL":31207,"mgmt":38091}}}},
		{"services":{"mgmt":9001,"mgmtSSL":19001,"kv":12000,"kvSSL":12001},"hostname":"10.0.0.2",
		 "alternateAddresses":{"external":{"hostname":"out2"}}}]`
	doc := func(more string) string {
		return `{"rev":12,"revEpoch":3,"name":"beer",` + more + `"vBucketServerMap":{"hashAlgorithm":"CRC","numReplicas":1,"serverList":["$HOST:11210","10.0.0.2:12000"],"vBucketMap":[[0,1],[1,-1]]}}`
	}
	for name, q := range map[string]struct {
		view    view
		addr    string
		tls     bool
		body    string
		servers string
		says    string
	}{
		"as it is":       {view{}, "[fd00::1]:11210", false, doc(""), "[[fd00::1]:11210 10.0.0.2:12000]", ""},
		"TLS":            {view{}, "10.0.0.1:11207", true, doc(ext + ","), "[10.0.0.1:11207 10.0.0.2:12001]", ""},
		"external":       {view{network: NetworkExternal}, "out1:31210", false, doc(ext + ","), "[out1:31210 out2:12000]", ""},
		"external TLS":   {view{network: NetworkExternal}, "out1:31207", true, doc(ext + ","), "[out1:31207 out2:12001]", ""},
		"auto, inside":   {view{network: NetworkAuto, base: "10.0.0.2:9001"}, "10.0.0.1:11210", false, doc(ext + ","), "[10.0.0.1:11210 10.0.0.2:12000]", ""},
		"auto, outside":  {view{network: NetworkAuto, base: "out1:38091"}, "out1:31210", false, doc(strings.Replace(ext, `"thisNode"`, `"hostname":"10.0.0.1","thisNode"`, 1) + ","), "", "how to reach its node out1:11210"},
		"TLS, no ports":  {view{}, "10.0.0.1:11207", true, doc(""), "", "how to reach its node"},
		"no port of it":  {view{}, "10.0.0.1:11207", true, doc(strings.Replace(ext, `"kvSSL":12001`, `"x":1`, 1) + ","), "", "kvSSL"},
		"none outside":   {view{network: NetworkExternal}, "out1:1", false, doc(strings.Replace(ext, `"external":{"hostname":"out2"}`, "", 1) + ","), "", "no external address"},
		"no map":         {view{}, "h:1", false, `{"rev":1,"name":"b"}`, "", "carries no vbucket map"},
		"empty map":      {view{}, "h:1", false, `{"vBucketServerMap":{"serverList":[],"vBucketMap":[]}}`, "", "carries no vbucket map"},
		"empty":          {view{}, "h:1", false, ``, "", "carries no vbucket map"},
		"text":           {view{}, "h:1", false, `not here`, "", "not JSON"},
		"cut":            {view{}, "h:1", false, doc("")[:80], "", "breaks off"},
		"wrong index":    {view{}, "h:1", false, strings.Replace(doc(""), "[1,-1]", "[7,-1]", 1), "", "server 7 of a list of 2"},
		"negative port":  {view{}, "h:1", true, doc(strings.Replace(ext, "12001", "-1", 1) + ","), "", "kvSSL"},
		"a bad document": {view{}, "h:1", false, `{"nodesExt":7}`, "", "does not fit"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConn(&KVConfig{Addr: q.addr, Role: "source", view: q.view})
			c.tls = q.tls
			m, err := c.MapFrom([]byte(q.body))
			if q.says != "" {
				if err == nil || !strings.Contains(err.Error(), q.says) {
					t.Errorf("%v, %v", m, err)
				}
				return
			}
			if err != nil || fmt.Sprint(m.Servers) != q.servers || m.Rev != 12 || m.RevEpoch != 3 {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
}

func FuzzTerseMap(f *testing.F) {
	f.Add([]byte(`{"rev":1,"nodesExt":[{"services":{"kv":1,"kvSSL":2},"hostname":"h","alternateAddresses":{"external":{"hostname":"o","ports":{"kvSSL":3}}}}],"vBucketServerMap":{"serverList":["h:1"],"vBucketMap":[[0]]}}`), true, true)
	f.Add([]byte(`{"vBucketServerMap":{"serverList":["$HOST:1"],"vBucketMap":[[0,-1]]}}`), false, false)
	f.Fuzz(func(t *testing.T, body []byte, tls, external bool) {
		v := view{base: "h:8091", tls: tls, network: NetworkAuto}
		if external {
			v.network = NetworkExternal
		}
		m, err := parseTerse(body, "h", v)
		if err != nil {
			return
		}
		if m.Len() == 0 {
			t.Fatal("no map and no error")
		}
		for _, s := range m.Servers {
			if _, _, err := splitAddr(s); err != nil || bytes.Contains([]byte(s), []byte("$HOST")) {
				t.Fatalf("%q cannot be dialled", s)
			}
		}
		for vb := range m.VBuckets {
			for _, at := range m.VBuckets[vb] {
				if at < -1 || at >= len(m.Servers) {
					t.Fatal("a server that is not there")
				}
			}
		}
	})
}
