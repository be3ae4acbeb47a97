// Command cbdemo shows the main job for real: it starts two embedded clusters
// with the same documents, fails a node of one over without a replica, runs the
// cbrecovery command on it, and compares every document afterwards.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/cbpump/cbpump/simcluster"
)

func main() {
	command := flag.String("cbrecovery", "bin/cbrecovery", "the command to run")
	docs := flag.Int("docs", 100_000, "documents to load")
	vbuckets := flag.Int("vbuckets", 1024, "vbuckets of the bucket")
	version := flag.String("version", "2.5.1", "server version that the embedded clusters play")
	flag.Parse()
	if err := demo(os.Stdout, *command, *docs, *vbuckets, *version); err != nil {
		fmt.Fprintln(os.Stderr, "demo failed:", err)
		os.Exit(1)
	}
}

const bucketName = "beer"

func demo(out io.Writer, command string, docs, vbuckets int, version string) (err error) {
	say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }

	start := func(nodes int) (*simcluster.Cluster, error) {
		return simcluster.Start(simcluster.Config{
			Nodes: nodes, VBuckets: vbuckets, Version: version,
			Buckets: []simcluster.BucketConfig{{Name: bucketName, Password: "bucket-password"}},
		})
	}
	copyCluster, err := start(2)
	if err != nil {
		return fmt.Errorf("start the cluster that holds the copy: %w", err)
	}
	defer func() { err = errors.Join(err, copyCluster.Close()) }()
	damaged, err := start(3)
	if err != nil {
		return fmt.Errorf("start the cluster to be damaged: %w", err)
	}
	defer func() { err = errors.Join(err, damaged.Close()) }()

	say("== 1. Two clusters of version %s on loopback, bucket %q of %d vbuckets, no replicas", version, bucketName, vbuckets)
	say("   copy        %s  (2 nodes)", copyCluster.URL())
	say("   production  %s  (3 nodes: A, B, C)", damaged.URL())
	letters := map[string]byte{}
	for i, n := range damaged.Nodes() {
		letters[n.KV()] = "ABC"[i]
	}
	src, dst := copyCluster.Bucket(bucketName), damaged.Bucket(bucketName)
	began := time.Now()
	if err := load(docs, src, dst); err != nil {
		return fmt.Errorf("load documents: %w", err)
	}
	say("   %d documents loaded into both in %s: JSON, binary, empty, large, with flags and expiry, some deleted\n", docs, time.Since(began).Round(10*time.Millisecond))

	lost := damaged.Nodes()[1]
	replacement, err := damaged.NewNode()
	if err != nil {
		return fmt.Errorf("start a replacement node: %w", err)
	}
	letters[replacement.KV()] = 'N'
	before := census(src)
	lost.Kill()
	if err := damaged.Failover(lost); err != nil {
		return fmt.Errorf("fail a node over: %w", err)
	}
	missing := dst.Missing()
	say("== 2. Node B (%s) dies and is failed over; nobody has its %d vbuckets any more", lost.REST(), len(missing))
	drawMap(out, dst, letters)
	left := census(dst)
	say("   %d of %d documents are left\n", left, before)
	if len(missing) == 0 {
		return errors.New("the failover left no hole: there is nothing to show")
	}

	args := []string{
		"-b", bucketName, "-B", bucketName, "-u", "Administrator", "-U", "Administrator",
		"-a", replacement.REST(), "-r", lost.REST(), copyCluster.URL(), damaged.URL(),
	}
	say("== 3. cbrecovery puts back exactly those (passwords come from the environment)")
	say("   $ %s %s", command, strings.Join(args, " "))
	cmd := exec.Command(command, args...)
	cmd.Env = append(os.Environ(), "CB_REST_PASSWORD=password", "CB_REST_PASSWORD_DEST=password")
	cmd.Stdout, cmd.Stderr = out, out
	began = time.Now()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	say("   exit code 0 after %s\n", time.Since(began).Round(10*time.Millisecond))

	say("== 4. The map afterwards (N is the new node %s)", replacement.REST())
	drawMap(out, dst, letters)
	differences := compare(src, dst)
	for i, d := range differences {
		if i == 10 {
			say("   … and %d more", len(differences)-10)
			break
		}
		say("   DIFFERENT: %s", d)
	}
	if len(differences) > 0 {
		return fmt.Errorf("%d documents differ from the copy", len(differences))
	}
	if n := dst.Missing(); len(n) > 0 {
		return fmt.Errorf("%d vbuckets are still missing", len(n))
	}
	say("   every one of %d documents compared byte for byte: key, value, CAS, revision, flags, expiry: all the same", census(dst))
	return nil
}

// load puts the same documents with the same CAS and revision into both
// clusters, as cross-datacentre replication leaves them.
func load(n int, buckets ...*simcluster.Bucket) error {
	dice := rand.New(rand.NewPCG(42, 42))
	noise := func(size int) []byte {
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(dice.Uint32())
		}
		return p
	}
	tomorrow := uint32(time.Now().Add(24 * time.Hour).Unix())
	for i := range n {
		d := simcluster.Doc{
			Key: fmt.Appendf(nil, "beer::%06d", i), CAS: 1<<50 + uint64(i)*7, Rev: uint64(1 + i%9), Flags: uint32(i) * 2654435761,
		}
		switch i % 20 {
		case 0:
			d.Value = nil
		case 1, 2:
			d.Value = noise(64 + i%1000)
		case 3:
			d.Key = append([]byte{0, 0xff, 0x80}, d.Key...)
			d.Value = noise(100)
		case 4:
			d.Expiry = tomorrow + uint32(i)
			d.Value = []byte("expires tomorrow")
		case 5:
			d.Deleted = true
		case 6:
			if i%1000 == 6 {
				d.Value = noise(512 << 10)
			}
		default:
			d.Value = fmt.Appendf(nil, `{"name":"beer %d","abv":%d.%d,"ibu":%d,"description":%q}`, i, i%12, i%10, i%90, strings.Repeat("hop ", i%40))
		}
		for _, b := range buckets {
			if err := b.Store(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// census counts live documents.
func census(b *simcluster.Bucket) (n int) {
	b.Each(func(_ uint16, d simcluster.Doc) bool {
		if !d.Deleted {
			n++
		}
		return true
	})
	return n
}

// compare lists what differs between the live documents of two buckets.
func compare(want, got *simcluster.Bucket) (out []string) {
	seen := 0
	want.Each(func(vb uint16, w simcluster.Doc) bool {
		if w.Deleted {
			if g, ok := got.Get(w.Key); ok && !g.Deleted {
				out = append(out, fmt.Sprintf("vbucket %d key %q is deleted in the copy and lives", vb, w.Key))
			}
			return true
		}
		seen++
		g, ok := got.Get(w.Key)
		switch {
		case !ok || g.Deleted:
			out = append(out, fmt.Sprintf("vbucket %d key %q is missing", vb, w.Key))
		case !bytes.Equal(g.Value, w.Value), g.CAS != w.CAS, g.Rev != w.Rev, g.Flags != w.Flags, g.Expiry != w.Expiry:
			out = append(out, fmt.Sprintf("vbucket %d key %q: CAS %d/%d rev %d/%d flags %d/%d expiry %d/%d, %d/%d bytes",
				vb, w.Key, g.CAS, w.CAS, g.Rev, w.Rev, g.Flags, w.Flags, g.Expiry, w.Expiry, len(g.Value), len(w.Value)))
		}
		return true
	})
	if n := census(got); n != seen {
		out = append(out, fmt.Sprintf("%d documents where the copy has %d", n, seen))
	}
	return out
}

// drawMap draws one letter for each vbucket, the node that has it active; a dot
// is a vbucket that nobody has.
func drawMap(out io.Writer, b *simcluster.Bucket, letters map[string]byte) {
	const perLine = 64
	m, servers := b.Map(), b.Servers()
	for from := 0; from < len(m); from += perLine {
		line := make([]byte, 0, perLine)
		for _, copies := range m[from:min(from+perLine, len(m))] {
			if at := copies[0]; at >= 0 && at < len(servers) {
				line = append(line, letters[servers[at]])
			} else {
				line = append(line, '.')
			}
		}
		fmt.Fprintf(out, "   %4d  %s\n", from, line)
	}
}
