package interop

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/couchbase/gocbcore/v10"
	"github.com/couchbase/gocbcore/v10/memd"
	"github.com/couchbase/gomemcached"
	memcached "github.com/couchbase/gomemcached/client"
	"github.com/golang/snappy"
	"go.uber.org/goleak"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/internal/sdktest"
	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
	"github.com/cbpump/cbpump/pump/pumptest"
	"github.com/cbpump/cbpump/simcluster"
	"github.com/cbpump/cbpump/sinks/mc"
	"github.com/cbpump/cbpump/sources/dcp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	bucket   = "beer"
	password = "beerpw"
	jsonFlag = 0x2000006 // how SDKs mark JSON
)

func startCluster(t *testing.T, version string) *simcluster.Cluster {
	t.Helper()
	c, err := simcluster.Start(simcluster.Config{
		Nodes: 2, Version: version, TLS: &simcluster.TLSConfig{},
		Buckets: []simcluster.BucketConfig{{Name: bucket, Password: password, Replicas: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

var orders = &pump.Collection{Scope: "shop", Name: "orders"}

// documents are of every kind that a client can read; those of the named collection
// only where there are collections. Each key's last version counts.
func documents(collections bool) []pump.Item {
	var items []pump.Item
	for i := range 200 {
		it := pump.Item{VBucket: pump.NoVBucket, Key: fmt.Appendf(nil, "doc-%03d", i), Value: fmt.Appendf(nil, `{"n":%d,"pad":"%s"}`, i, strings.Repeat("x", i)),
			Datatype: mcbp.DatatypeJSON, Flags: jsonFlag, CAS: 1<<60 + uint64(i)<<16, RevSeqno: uint64(1 + i%5)}
		switch i % 10 {
		case 1:
			it.Value, it.Datatype, it.Flags = []byte{0, 0xff, '\r', '\n', byte(i)}, 0, 0x3000000
		case 2:
			it.Value, it.Datatype = snappy.Encode(nil, it.Value), mcbp.DatatypeJSON|mcbp.DatatypeSnappy
		case 3:
			it.Expiry = uint32(time.Now().Add(24 * time.Hour).Unix())
		case 4:
			it.Value, it.Datatype, it.Flags = nil, 0, 0
		case 5:
			it.Op, it.Value, it.Datatype, it.Flags = pump.Deletion, nil, 0, 0
		}
		if collections && i%4 == 0 {
			it.Collection = orders
		}
		items = append(items, it)
	}
	return items
}

// write has our cluster sink write the documents, with a login by SCRAM, or TLS.
func write(t *testing.T, c *simcluster.Cluster, overTLS bool, items []pump.Item) {
	t.Helper()
	o := mc.DefaultCBOptions()
	o.CreateCollections = true
	cfg := mc.CBConfig{URL: c.URL(), Env: pump.Env{Bucket: bucket, Username: "Administrator", Password: "password"}, Options: o}
	if overTLS {
		cfg.URL, cfg.TLS = "https://"+c.Nodes()[0].RESTTLS(), cluster.TLS{CACertPEM: c.CACert()}
	}
	sink, err := mc.NewCB(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	report, err := pump.Run(t.Context(), pump.Config{Source: &pumptest.MemSource{Parts: [][]pump.Item{items}}, Sink: sink, Settings: pump.DefaultSettings()})
	if err != nil || report.Done != uint64(len(items)) {
		t.Fatalf("%d of %d written: %v", report.Done, len(items), err)
	}
}

func hasCollections(version string) bool { return version[0] >= '7' }

// plainValue is an item's value without compression.
func plainValue(t *testing.T, value []byte, datatype uint8) []byte {
	t.Helper()
	if datatype&mcbp.DatatypeSnappy == 0 {
		return value
	}
	plain, err := snappy.Decode(nil, value)
	if err != nil {
		t.Error(err)
	}
	return plain
}

func security(c *simcluster.Cluster, overTLS bool) gocbcore.SecurityConfig {
	s := gocbcore.SecurityConfig{Auth: &gocbcore.PasswordAuthProvider{Username: bucket, Password: password}, UseTLS: overTLS,
		AuthMechanisms: []gocbcore.AuthMechanism{gocbcore.ScramSha512AuthMechanism}}
	if overTLS {
		s.TLSRootCAProvider = func() *x509.CertPool {
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(c.CACert())
			return pool
		}
	}
	return s
}

func seeds(c *simcluster.Cluster, overTLS bool) (s gocbcore.SeedConfig) {
	for _, n := range c.Nodes() {
		if overTLS {
			s.MemdAddrs, s.HTTPAddrs = append(s.MemdAddrs, n.KVTLS()), append(s.HTTPAddrs, n.RESTTLS())
		} else {
			s.MemdAddrs, s.HTTPAddrs = append(s.MemdAddrs, n.KV()), append(s.HTTPAddrs, n.REST())
		}
	}
	return s
}

// TestGocbcoreReads: gocbcore reads what our sink wrote, with SCRAM and over TLS.
func TestGocbcoreReads(t *testing.T) {
	for _, version := range []string{"6.0.4", "6.6.5", "7.0.5", "7.6"} {
		for _, overTLS := range []bool{false, true} {
			t.Run(fmt.Sprint(version, " TLS ", overTLS), func(t *testing.T) {
				c, items := startCluster(t, version), documents(hasCollections(version))
				write(t, c, overTLS, items)
				agent, err := gocbcore.CreateAgent(&gocbcore.AgentConfig{
					BucketName: bucket, SeedConfig: seeds(c, overTLS), SecurityConfig: security(c, overTLS),
					IoConfig:          gocbcore.IoConfig{UseCollections: true},
					CompressionConfig: gocbcore.CompressionConfig{Enabled: true},
				})
				if err != nil {
					t.Fatal(err)
				}
				defer agent.Close()
				deadline := time.Now().Add(25 * time.Second)
				if err := sdktest.Await(t, func(done func(error)) error {
					_, err := agent.WaitUntilReady(deadline, gocbcore.WaitUntilReadyOptions{ServiceTypes: []gocbcore.ServiceType{gocbcore.MemdService}}, func(_ *gocbcore.WaitUntilReadyResult, err error) { done(err) })
					return err
				}); err != nil {
					t.Fatal(err)
				}
				for i := range items {
					it := &items[i]
					o := gocbcore.GetOptions{Key: it.Key, Deadline: deadline}
					if it.Collection != nil {
						o.ScopeName, o.CollectionName = it.Collection.Scope, it.Collection.Name
					}
					var got gocbcore.GetResult
					err := sdktest.Await(t, func(done func(error)) error {
						_, err := agent.Get(o, func(r *gocbcore.GetResult, err error) {
							if r != nil {
								got = *r
							}
							done(err)
						})
						return err
					})
					if it.Op != pump.Mutation {
						if !errors.Is(err, gocbcore.ErrDocumentNotFound) {
							t.Errorf("%s is deleted: %v", it.Key, err)
						}
						continue
					}
					if want := plainValue(t, it.Value, it.Datatype); err != nil || !bytes.Equal(got.Value, want) || got.Flags != it.Flags || uint64(got.Cas) != it.CAS {
						t.Errorf("%s: %q, flags %x, CAS %x (%v); written: %q, %x, %x", it.Key, got.Value, got.Flags, got.Cas, err, want, it.Flags, it.CAS)
					}
				}
			})
		}
	}
}

// TestNodeReads: the Node.js SDK reads what our sink wrote. scripts/nodesdk.sh
// installs it; the test runs where that was done, and fails elsewhere if
// CBPUMP_NODESDK is "required", as make test sets it.
func TestNodeReads(t *testing.T) {
	node, found := sdktest.FindNode(t, "../..")
	if !found {
		return
	}
	for _, version := range []string{"6.6.5", "7.6"} {
		for _, overTLS := range []bool{false, true} {
			t.Run(fmt.Sprint(version, " TLS ", overTLS), func(t *testing.T) {
				c, items := startCluster(t, version), documents(hasCollections(version))
				write(t, c, overTLS, items)
				n := c.Nodes()[0]
				addr, ca := n.KV(), []byte(nil)
				if overTLS {
					addr, ca = n.KVTLS(), c.CACert()
				}
				args := []string{bucket}
				var want []string
				for i := range items {
					it := &items[i]
					if it.Op != pump.Mutation || it.Flags != jsonFlag {
						continue
					}
					key := string(it.Key)
					if it.Collection != nil {
						key = it.Collection.String() + "/" + key
					}
					args = append(args, key)
					want = append(want, fmt.Sprintf(`{"key":%q,"value":%s,"cas":"%d"}`, key, plainValue(t, it.Value, it.Datatype), it.CAS))
				}
				out := node.Run(t, "testdata/read.js", addr, ca, bucket, password, args...)
				got := strings.Split(strings.TrimSpace(out), "\n")
				if len(want) < 100 || len(got) != len(want) {
					t.Fatalf("%d documents read, %d written", len(got), len(want))
				}
				for i := range want {
					if !json.Valid([]byte(got[i])) || got[i] != want[i] {
						t.Errorf("read %s, written %s", got[i], want[i])
					}
				}
			})
		}
	}
}

// sight is what a client says of an item. Values are compared without compression:
// clients choose by themselves whether they want it.
func sight(kind, coll string, vb uint16, key, value []byte, flags, expiry uint32, cas, rev, seqno uint64) (id, text string) {
	return fmt.Sprintf("%s/%s", coll, key), fmt.Sprintf("%s vb %d value %q flags %x expiry %d cas %x rev %d seqno %d", kind, vb, value, flags, expiry, cas, rev, seqno)
}

// ours is what our source sees.
func ours(t *testing.T, c *simcluster.Cluster, overTLS bool) map[string]string {
	t.Helper()
	cfg := dcp.Config{URL: c.URL(), Env: pump.Env{Bucket: bucket, Username: "Administrator", Password: "password"}, Options: dcp.DefaultOptions()}
	if overTLS {
		cfg.URL, cfg.TLS = "https://"+c.Nodes()[0].RESTTLS(), cluster.TLS{CACertPEM: c.CACert()}
	}
	src, err := dcp.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	sink := &pumptest.MemSink{LaneCount: 2}
	if _, err := pump.Run(t.Context(), pump.Config{Source: src, Sink: sink, Settings: pump.DefaultSettings(), Scribble: true}); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, it := range sink.Log() {
		expiry := it.Expiry
		if it.Op != pump.Mutation {
			expiry = 0 // only we ask for the times of deletions
		}
		id, text := sight(it.Op.String(), it.Collection.String(), it.VBucket, it.Key, plainValue(t, it.Value, it.Datatype), it.Flags, expiry, it.CAS, it.RevSeqno, it.Seqno)
		if out[id] != "" {
			t.Errorf("%s came twice", id)
		}
		out[id] = text
	}
	return out
}

// sameSight compares what another client sees with what ours does.
func sameSight(t *testing.T, want, got map[string]string) {
	t.Helper()
	if len(want) < 190 || len(want) != len(got) {
		t.Errorf("we see %d items, they see %d", len(want), len(got))
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if got[id] != want[id] {
			t.Errorf("%s: we see %s, they see %s", id, want[id], got[id])
		}
	}
}

// heard is what gocbcore's DCP agent hears.
type heard struct {
	t     *testing.T
	names map[uint32]string
	mu    sync.Mutex
	items map[string]string
	ends  chan error
}

func (h *heard) note(kind string, coll uint32, vb uint16, key, value []byte, datatype uint8, flags, expiry uint32, cas, rev, seqno uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	id, text := sight(kind, h.names[coll], vb, key, plainValue(h.t, value, datatype), flags, expiry, cas, rev, seqno)
	h.items[id] = text
}

func (h *heard) SnapshotMarker(gocbcore.DcpSnapshotMarker) {}
func (h *heard) Mutation(m gocbcore.DcpMutation) {
	h.note("mutation", m.CollectionID, m.VbID, m.Key, m.Value, m.Datatype, m.Flags, m.Expiry, m.Cas, m.RevNo, m.SeqNo)
}
func (h *heard) Deletion(m gocbcore.DcpDeletion) {
	h.note("deletion", m.CollectionID, m.VbID, m.Key, m.Value, m.Datatype, 0, 0, m.Cas, m.RevNo, m.SeqNo)
}
func (h *heard) Expiration(m gocbcore.DcpExpiration) {
	h.note("expiration", m.CollectionID, m.VbID, m.Key, nil, 0, 0, 0, m.Cas, m.RevNo, m.SeqNo)
}
func (h *heard) End(_ gocbcore.DcpStreamEnd, err error) { h.ends <- err }
func (h *heard) CreateCollection(e gocbcore.DcpCollectionCreation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.names[e.CollectionID] = orders.Scope + "." + string(e.Key)
}
func (h *heard) DeleteCollection(gocbcore.DcpCollectionDeletion)     {}
func (h *heard) FlushCollection(gocbcore.DcpCollectionFlush)         {}
func (h *heard) CreateScope(gocbcore.DcpScopeCreation)               {}
func (h *heard) DeleteScope(gocbcore.DcpScopeDeletion)               {}
func (h *heard) ModifyCollection(gocbcore.DcpCollectionModification) {}
func (h *heard) OSOSnapshot(gocbcore.DcpOSOSnapshot)                 {}
func (h *heard) SeqNoAdvanced(gocbcore.DcpSeqNoAdvanced)             {}

// TestGocbcoreStreams: gocbcore's DCP agent sees the same items as our source, with
// SCRAM and over TLS.
func TestGocbcoreStreams(t *testing.T) {
	for _, version := range []string{"6.0.4", "6.6.5", "7.0.5", "7.6"} {
		for _, overTLS := range []bool{false, true} {
			t.Run(fmt.Sprint(version, " TLS ", overTLS), func(t *testing.T) {
				c := startCluster(t, version)
				write(t, c, overTLS, documents(hasCollections(version)))
				agent, err := gocbcore.CreateDcpAgent(&gocbcore.DCPAgentConfig{
					BucketName: bucket, SeedConfig: seeds(c, overTLS), SecurityConfig: security(c, overTLS),
					IoConfig: gocbcore.IoConfig{UseCollections: true},
				}, "interop", memd.DcpOpenFlagProducer)
				if err != nil {
					t.Fatal(err)
				}
				defer agent.Close()
				deadline := time.Now().Add(25 * time.Second)
				if err := sdktest.Await(t, func(done func(error)) error {
					_, err := agent.WaitUntilReady(deadline, gocbcore.WaitUntilReadyOptions{}, func(_ *gocbcore.WaitUntilReadyResult, err error) { done(err) })
					return err
				}); err != nil {
					t.Fatal(err)
				}
				h := &heard{t: t, names: map[uint32]string{0: "_default._default"}, items: map[string]string{}, ends: make(chan error, 64)}
				for vb := range uint16(64) {
					end := gocbcore.SeqNo(c.Bucket(bucket).HighSeqno(vb))
					if err := sdktest.Await(t, func(done func(error)) error {
						_, err := agent.OpenStream(vb, 0, 0, 0, end, 0, 0, h, gocbcore.OpenStreamOptions{}, func(_ []gocbcore.FailoverEntry, err error) { done(err) })
						return err
					}); err != nil {
						t.Fatalf("stream of vbucket %d: %v", vb, err)
					}
				}
				for range 64 {
					select {
					case err := <-h.ends:
						if err != nil {
							t.Error(err)
						}
					case <-time.After(30 * time.Second):
						t.Fatal("a stream does not end")
					}
				}
				h.mu.Lock()
				defer h.mu.Unlock()
				sameSight(t, ours(t, c, overTLS), h.items)
			})
		}
	}
}

// TestGomemcachedFeeds: gomemcached's UPR feed sees the same items as our source.
func TestGomemcachedFeeds(t *testing.T) {
	for _, version := range []string{"3.0.3", "4.0", "4.6", "6.0.4", "6.6.5", "7.0.5", "7.6"} {
		t.Run(version, func(t *testing.T) {
			c := startCluster(t, version)
			items := documents(false)
			if version[0] < '5' {
				for i := range items {
					items[i].Value, items[i].Datatype = plainValue(t, items[i].Value, items[i].Datatype), 0
				}
			}
			write(t, c, false, items)
			modern := version[0] >= '5'
			got := map[string]string{}
			for _, n := range c.Nodes() {
				feedOf(t, c, n, modern, got)
			}
			sameSight(t, ours(t, c, false), got)
		})
	}
}

// feedOf streams what is active at a node.
func feedOf(t *testing.T, c *simcluster.Cluster, n *simcluster.Node, modern bool, got map[string]string) {
	t.Helper()
	conn, err := memcached.Connect("tcp", n.KV())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if modern {
		if _, err := conn.EnableFeatures(memcached.Features{memcached.FeatureXerror, memcached.FeatureDataType, memcached.FeatureSnappyCompression}); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.AuthScramSha(bucket, password); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.SelectBucket(bucket); err != nil {
			t.Fatal(err)
		}
	} else if _, err := conn.AuthPlain(bucket, password); err != nil {
		t.Fatal(err)
	}
	feed, err := conn.NewUprFeed()
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Close()
	if err := feed.UprOpen("interop", 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := feed.StartFeed(); err != nil {
		t.Fatal(err)
	}
	open := 0
	for vb := range uint16(64) {
		if s, _ := n.VBucket(bucket, vb); s != mcbp.VBActive {
			continue
		}
		if err := feed.UprRequestStream(vb, vb, 0, 0, 0, c.Bucket(bucket).HighSeqno(vb), 0, 0); err != nil {
			t.Fatal(err)
		}
		open++
	}
	if open == 0 {
		t.Fatal("nothing is active there")
	}
	for open > 0 {
		select {
		case e, ok := <-feed.GetUprEventCh():
			if !ok {
				t.Fatalf("the feed ends with %d streams open: %v", open, feed.GetError())
			}
			kind := ""
			switch e.Opcode {
			case gomemcached.UPR_MUTATION:
				kind = "mutation"
			case gomemcached.UPR_DELETION:
				kind = "deletion"
			case gomemcached.UPR_STREAMEND:
				open--
			}
			if kind != "" {
				id, text := sight(kind, "_default._default", e.VBucket, e.Key, plainValue(t, e.Value, e.DataType), e.Flags, e.Expiry, e.Cas, e.RevSeqno, e.Seqno)
				got[id] = text
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%d streams do not end", open)
		}
	}
}
