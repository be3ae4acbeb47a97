package simcluster

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/couchbase/gocbcore/v10"
	"github.com/couchbase/gocbcore/v10/memd"
	memcached "github.com/couchbase/gomemcached/client"

	"github.com/couchbase/gomemcached"

	"github.com/cbpump/cbpump/internal/sdktest"
	"github.com/cbpump/cbpump/mcbp"
)

// sdkCluster has documents in the default and in a named collection.
func sdkCluster(t *testing.T, version string) *Cluster {
	t.Helper()
	cfg := Config{
		Nodes: 2, Version: version, TLS: &TLSConfig{},
		Buckets: []BucketConfig{{Name: "beer", Password: "beerpw", Replicas: 1}},
	}
	c := start(t, cfg)
	for i := range 300 {
		d := Doc{Key: fmt.Appendf(nil, "doc-%03d", i), Value: fmt.Appendf(nil, `{"n":%d}`, i), Flags: 0x2000006, Datatype: 1}
		if err := c.Bucket("beer").Store(d); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		if err := c.Bucket("beer").Delete(fmt.Appendf(nil, "doc-%03d", i)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func security(c *Cluster, overTLS bool) gocbcore.SecurityConfig {
	s := gocbcore.SecurityConfig{Auth: &gocbcore.PasswordAuthProvider{Username: "beer", Password: "beerpw"}, UseTLS: overTLS}
	if overTLS {
		s.TLSRootCAProvider = func() *x509.CertPool {
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(c.CACert())
			return pool
		}
	}
	return s
}

func seeds(c *Cluster, overTLS bool) (s gocbcore.SeedConfig) {
	for _, n := range c.Nodes() {
		if overTLS {
			s.MemdAddrs = append(s.MemdAddrs, n.KVTLS())
			s.HTTPAddrs = append(s.HTTPAddrs, n.RESTTLS())
		} else {
			s.MemdAddrs = append(s.MemdAddrs, n.KV())
			s.HTTPAddrs = append(s.HTTPAddrs, n.REST())
		}
	}
	return s
}

// gocbcore finds the nodes by the cluster map of the KV port, logs in with SCRAM
// and reads and writes.
func TestGocbcoreKV(t *testing.T) {
	for _, version := range []string{"6.0.4", "6.6.5", "7.0.5", "7.6"} {
		for _, overTLS := range []bool{false, true} {
			t.Run(fmt.Sprint(version, " TLS ", overTLS), func(t *testing.T) {
				c := sdkCluster(t, version)
				var coll uint32
				if c.rel.hasCollections() {
					if _, err := c.Bucket("beer").CreateScope("shop"); err != nil {
						t.Fatal(err)
					}
					var err error
					if coll, err = c.Bucket("beer").CreateCollection("shop", "items", 0); err != nil {
						t.Fatal(err)
					}
				}
				agent, err := gocbcore.CreateAgent(&gocbcore.AgentConfig{
					BucketName: "beer", SeedConfig: seeds(c, overTLS), SecurityConfig: security(c, overTLS),
					IoConfig:          gocbcore.IoConfig{UseCollections: true, UseMutationTokens: true, UseDurations: true, UseOutOfOrderResponses: true},
					CompressionConfig: gocbcore.CompressionConfig{Enabled: true},
				})
				if err != nil {
					t.Fatal(err)
				}
				defer agent.Close()
				deadline := time.Now().Add(15 * time.Second)
				if err := sdktest.Await(t, func(done func(error)) error {
					_, err := agent.WaitUntilReady(deadline, gocbcore.WaitUntilReadyOptions{ServiceTypes: []gocbcore.ServiceType{gocbcore.MemdService}}, func(_ *gocbcore.WaitUntilReadyResult, err error) { done(err) })
					return err
				}); err != nil {
					t.Fatal(err)
				}
				for _, i := range []int{20, 100, 299} {
					key := fmt.Appendf(nil, "doc-%03d", i)
					var got gocbcore.GetResult
					if err := sdktest.Await(t, func(done func(error)) error {
						_, err := agent.Get(gocbcore.GetOptions{Key: key, Deadline: deadline}, func(r *gocbcore.GetResult, err error) {
							if r != nil {
								got = *r
							}
							done(err)
						})
						return err
					}); err != nil || string(got.Value) != fmt.Sprintf(`{"n":%d}`, i) || got.Flags != 0x2000006 {
						t.Errorf("%s: %q flags %x: %v", key, got.Value, got.Flags, err)
					}
				}
				if err := sdktest.Await(t, func(done func(error)) error {
					_, err := agent.Get(gocbcore.GetOptions{Key: []byte("doc-003"), Deadline: deadline}, func(_ *gocbcore.GetResult, err error) { done(err) })
					return err
				}); !errors.Is(err, gocbcore.ErrDocumentNotFound) {
					t.Errorf("a deleted document: %v", err)
				}
				o := gocbcore.SetOptions{Key: []byte("from the sdk"), Value: []byte(`{"x":1}`), Deadline: deadline}
				if coll != 0 {
					o.ScopeName, o.CollectionName = "shop", "items"
				}
				if err := sdktest.Await(t, func(done func(error)) error {
					_, err := agent.Set(o, func(_ *gocbcore.StoreResult, err error) { done(err) })
					return err
				}); err != nil {
					t.Fatal(err)
				}
				if d, ok := c.Bucket("beer").GetIn(coll, []byte("from the sdk")); !ok || string(d.Value) != `{"x":1}` || d.Datatype != 1 {
					t.Errorf("stored: %+v, %v", d, ok)
				}
			})
		}
	}
}

// heard is what a stream's client heard, keyed by collection, key and kind.
type heard struct {
	mu    sync.Mutex
	items map[string]string
	ends  chan error
}

func (h *heard) note(kind string, coll uint32, key, value []byte, cas, rev, seqno uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.items[fmt.Sprintf("%d/%s", coll, key)] = fmt.Sprint(kind, " ", string(value), " ", cas, " ", rev, " ", seqno)
}

func (h *heard) SnapshotMarker(gocbcore.DcpSnapshotMarker) {}
func (h *heard) Mutation(m gocbcore.DcpMutation) {
	h.note("mutation", m.CollectionID, m.Key, m.Value, m.Cas, m.RevNo, m.SeqNo)
}
func (h *heard) Deletion(m gocbcore.DcpDeletion) {
	h.note("deletion", m.CollectionID, m.Key, m.Value, m.Cas, m.RevNo, m.SeqNo)
}
func (h *heard) Expiration(m gocbcore.DcpExpiration) {
	h.note("expiration", m.CollectionID, m.Key, nil, m.Cas, m.RevNo, m.SeqNo)
}
func (h *heard) End(_ gocbcore.DcpStreamEnd, err error)              { h.ends <- err }
func (h *heard) CreateCollection(gocbcore.DcpCollectionCreation)     {}
func (h *heard) DeleteCollection(gocbcore.DcpCollectionDeletion)     {}
func (h *heard) FlushCollection(gocbcore.DcpCollectionFlush)         {}
func (h *heard) CreateScope(gocbcore.DcpScopeCreation)               {}
func (h *heard) DeleteScope(gocbcore.DcpScopeDeletion)               {}
func (h *heard) ModifyCollection(gocbcore.DcpCollectionModification) {}
func (h *heard) OSOSnapshot(gocbcore.DcpOSOSnapshot)                 {}
func (h *heard) SeqNoAdvanced(gocbcore.DcpSeqNoAdvanced)             {}

// held is what the cluster has, in the form of heard.
func held(c *Cluster) map[string]string {
	out := map[string]string{}
	c.Bucket("beer").Each(func(_ uint16, d Doc) bool {
		kind := "mutation"
		if d.Deleted {
			kind = "deletion"
		}
		out[fmt.Sprintf("%d/%s", d.Collection, d.Key)] = fmt.Sprint(kind, " ", string(d.Value), " ", d.CAS, " ", d.Rev, " ", d.Seqno)
		return true
	})
	return out
}

// gocbcore's DCP agent streams every item that the cluster has.
func TestGocbcoreDCP(t *testing.T) {
	for _, version := range []string{"6.0.4", "7.0.5", "7.6"} {
		t.Run(version, func(t *testing.T) {
			c := sdkCluster(t, version)
			if c.rel.hasCollections() {
				if _, err := c.Bucket("beer").CreateScope("shop"); err != nil {
					t.Fatal(err)
				}
				id, err := c.Bucket("beer").CreateCollection("shop", "items", 0)
				if err != nil {
					t.Fatal(err)
				}
				for i := range 50 {
					if err := c.Bucket("beer").Store(Doc{Collection: id, Key: fmt.Appendf(nil, "item-%d", i), Value: []byte("1"), Datatype: 1}); err != nil {
						t.Fatal(err)
					}
				}
			}
			agent, err := gocbcore.CreateDcpAgent(&gocbcore.DCPAgentConfig{
				BucketName: "beer", SeedConfig: seeds(c, false), SecurityConfig: security(c, false),
				IoConfig: gocbcore.IoConfig{UseCollections: true},
			}, "sdk", memd.DcpOpenFlagProducer)
			if err != nil {
				t.Fatal(err)
			}
			defer agent.Close()
			deadline := time.Now().Add(15 * time.Second)
			if err := sdktest.Await(t, func(done func(error)) error {
				_, err := agent.WaitUntilReady(deadline, gocbcore.WaitUntilReadyOptions{}, func(_ *gocbcore.WaitUntilReadyResult, err error) { done(err) })
				return err
			}); err != nil {
				t.Fatal(err)
			}
			h := &heard{items: map[string]string{}, ends: make(chan error, 64)}
			for vb := range uint16(64) {
				end := gocbcore.SeqNo(c.Bucket("beer").HighSeqno(vb))
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
				case <-time.After(20 * time.Second):
					t.Fatal("a stream does not end")
				}
			}
			want := held(c)
			if !maps.Equal(want, h.items) {
				t.Errorf("%d items came, there are %d; first here: %q, there: %q", len(h.items), len(want), first(h.items), first(want))
			}
		})
	}
}

func first(m map[string]string) string {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		return k + " " + m[k]
	}
	return ""
}

// gomemcached's feed streams the same.
func TestGomemcachedFeed(t *testing.T) {
	for _, version := range []string{"3.0.3", "4.6", "6.6.5", "7.0.5"} {
		t.Run(version, func(t *testing.T) {
			c := sdkCluster(t, version)
			got := map[string]string{}
			for _, n := range c.Nodes() {
				mc, err := memcached.Connect("tcp", n.KV())
				if err != nil {
					t.Fatal(err)
				}
				if c.rel.hasUsers() {
					if _, err := mc.EnableFeatures(memcached.Features{memcached.FeatureXerror, memcached.FeatureDataType}); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := mc.AuthPlain("beer", "beerpw"); err != nil {
					t.Fatal(err)
				}
				if c.rel.hasUsers() {
					if _, err := mc.SelectBucket("beer"); err != nil {
						t.Fatal(err)
					}
				}
				feed, err := mc.NewUprFeed()
				if err != nil {
					t.Fatal(err)
				}
				if err := feed.UprOpen("feed", 0, 1<<20); err != nil {
					t.Fatal(err)
				}
				if err := feed.StartFeed(); err != nil {
					t.Fatal(err)
				}
				open := 0
				for vb := range uint16(64) {
					if s, _ := n.VBucket("beer", vb); s != mcbp.VBActive {
						continue
					}
					if err := feed.UprRequestStream(vb, vb, 0, 0, 0, c.Bucket("beer").HighSeqno(vb), 0, 0); err != nil {
						t.Fatal(err)
					}
					open++
				}
				for open > 0 {
					select {
					case e, ok := <-feed.GetUprEventCh():
						if !ok {
							t.Fatalf("the feed ends with %d streams open: %v", open, feed.GetError())
						}
						switch e.Opcode {
						case gomemcached.UPR_MUTATION:
							got["0/"+string(e.Key)] = fmt.Sprint("mutation ", string(e.Value), " ", e.Cas, " ", e.RevSeqno, " ", e.Seqno)
						case gomemcached.UPR_DELETION:
							got["0/"+string(e.Key)] = fmt.Sprint("deletion ", string(e.Value), " ", e.Cas, " ", e.RevSeqno, " ", e.Seqno)
						case gomemcached.UPR_STREAMEND:
							open--
						}
					case <-time.After(20 * time.Second):
						t.Fatalf("%d streams do not end", open)
					}
				}
				feed.Close()
				mc.Close()
			}
			if want := held(c); !maps.Equal(want, got) {
				t.Errorf("%d items came, there are %d; first here: %q, there: %q", len(got), len(want), first(got), first(want))
			}
		})
	}
}

// The Node.js SDK, which has a client of its own in C++, finds the cluster with
// and without TLS and reads and writes. scripts/nodesdk.sh installs it; the test
// runs where that was done, and fails elsewhere if CBPUMP_NODESDK is "required".
func TestNodeSDK(t *testing.T) {
	node, found := sdktest.FindNode(t, "..")
	if !found {
		return
	}
	for _, version := range []string{"6.6.5", "7.0.5", "7.6"} {
		for _, overTLS := range []bool{false, true} {
			t.Run(fmt.Sprint(version, " TLS ", overTLS), func(t *testing.T) {
				c := sdkCluster(t, version)
				n := c.Nodes()[0]
				addr, ca := n.KV(), []byte(nil)
				if overTLS {
					addr, ca = n.KVTLS(), c.CACert()
				}
				if out := node.Run(t, "testdata/sdk.js", addr, ca, "beer", "beerpw", "beer", "doc-100"); out != `{"n":100}`+"\n" {
					t.Fatal(out)
				}
				if d, ok := c.Bucket("beer").Get([]byte("from node")); !ok || string(d.Value) != `{"hello":"sim"}` {
					t.Errorf("it wrote %q, %v", d.Value, ok)
				}
			})
		}
	}
}
