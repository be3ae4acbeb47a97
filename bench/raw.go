package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/mcbp"
)

// rawResult is what a limit says after each run.
type rawResult struct {
	Seconds float64 `json:"seconds"`
	User    float64 `json:"user"` // seconds of CPU
	Sys     float64 `json:"sys"`
}

const (
	rawConns   = 2         // that write
	rawSources = 8         // connections to a source: as many as the pump's sources open
	rawChunk   = 128 << 10 // of one write or read
)

// rawMain is the process of a limit: it encodes what it is to write, and then for
// each line on its standard input reads and writes everything once, at the same
// time, and prints how long that took.
func rawMain(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	f := pflag.NewFlagSet(modeRaw, pflag.ContinueOnError)
	items := f.Int("items", 0, "items to write")
	size := f.Int("size", 256, "bytes of a value")
	set := f.String("set", "", "memcached to write to with SETQ")
	meta := f.Bool("meta", false, "write with SETQ_WITH_META to the addresses that come on standard input")
	tap := f.String("tap", "", "node to dump")
	dcp := f.String("dcp", "", "node to stream from")
	read := f.StringArray("read", nil, "file to read")
	if err := f.Parse(args); err != nil {
		return err
	}
	w := &rawWriter{addr: *set}
	if *set != "" || *meta {
		w.encode(*items, *size, *meta, *tap != "" || *dcp != "")
	}
	answer := json.NewEncoder(out)
	if err := answer.Encode(rawResult{}); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if *meta {
			w.addr = lines.Text()
		}
		conns, err := w.dial()
		if err != nil {
			return err
		}
		began := usage()
		g, ctx := errgroup.WithContext(ctx)
		for i, c := range conns {
			g.Go(func() error { return w.write(c, w.out[i]) })
		}
		if *tap != "" {
			for i := range rawSources {
				g.Go(func() error { return readTap(ctx, *tap, share(i)) })
			}
		}
		if *dcp != "" {
			for i := range rawSources {
				g.Go(func() error { return readDcp(ctx, *dcp, share(i)) })
			}
		}
		for _, path := range *read {
			g.Go(func() error { return readFile(path) })
		}
		err = g.Wait()
		took := usage()
		for _, c := range conns {
			_ = c.Close()
		}
		if err != nil {
			return err
		}
		if err := answer.Encode(rawResult{took.Seconds - began.Seconds, took.User - began.User, took.Sys - began.Sys}); err != nil {
			return err
		}
	}
	return nil
}

func usage() rawResult {
	var u syscall.Rusage
	// It cannot fail for the process itself.
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return rawResult{float64(time.Now().UnixNano()) / 1e9, seconds(u.Utime), seconds(u.Stime)}
}

// share is the i-th part of the vbuckets.
func share(i int) (vbs []uint16) {
	for vb := i * vbuckets / rawSources; vb < (i+1)*vbuckets/rawSources; vb++ {
		vbs = append(vbs, uint16(vb))
	}
	return vbs
}

type rawWriter struct {
	addr string
	out  [rawConns][]byte
}

// encode encodes the items, in the order in which sources of clusters give them if it is
// to be by vbucket.
func (w *rawWriter) encode(items, size int, meta, byVBucket bool) {
	for i := range w.out {
		w.out[i] = make([]byte, 0, items*(size+80)/rawConns*11/10+1024)
	}
	var key []byte
	put := func(p *[]byte, vb, i int) {
		key = appendKey(key[:0], i)
		if !meta {
			*p = mcbp.AppendStore(*p, mcbp.OpSetQ, uint32(i), 0, 0, 0, 0, key, valueOf(i, size))
			return
		}
		m := mcbp.WithMeta{
			Opcode: mcbp.OpSetQWithMeta, VBucket: uint16(vb), Opaque: uint32(i),
			Key: key, Value: valueOf(i, size), Meta: mcbp.Meta{Rev: 1, CAS: uint64(i) + 1},
		}
		*p = m.Append(*p)
	}
	if byVBucket {
		var order [vbuckets][]int
		for i := range items {
			vb := cluster.VBucketOf(appendKey(key[:0], i), vbuckets)
			order[vb] = append(order[vb], i)
		}
		for vb := range order {
			for _, i := range order[vb] {
				put(&w.out[vb%rawConns], vb, i)
			}
		}
	} else {
		for i := range items {
			vb := 0 // memcached has none
			conn := i
			if meta {
				vb = int(cluster.VBucketOf(appendKey(key[:0], i), vbuckets))
				conn = vb
			}
			put(&w.out[conn%rawConns], vb, i)
		}
	}
	for i := range w.out {
		w.out[i] = mcbp.AppendNoop(w.out[i], fence)
	}
}

const fence = 0xffffffff

func (w *rawWriter) dial() (conns []net.Conn, err error) {
	if w.addr == "" {
		return nil, nil
	}
	for range rawConns {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

// write writes everything and waits for the answer to the fence; any other answer
// is a refusal.
func (w *rawWriter) write(c net.Conn, p []byte) error {
	for len(p) > 0 {
		n, err := c.Write(p[:min(len(p), rawChunk)])
		if err != nil {
			return err
		}
		p = p[n:]
	}
	f, err := mcbp.NewReader(c).Next()
	if err == nil && f.Opaque != fence {
		err = fmt.Errorf("item %d was answered with %s", f.Opaque, mcbp.StatusName(f.Status()))
	}
	return err
}

func readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, rawChunk)
	for {
		if _, err := f.Read(buf); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// packets reads a stream and hands over each packet's header and extras; the rest
// is passed over.
func packets(r io.Reader, each func(p []byte) (more bool, err error)) error {
	const head = mcbp.HeaderLen + 8
	buf := make([]byte, rawChunk)
	have, skip := 0, 0
	for {
		n, err := r.Read(buf[have:])
		if err != nil {
			return err
		}
		have += n
		p := buf[:have]
		for {
			if skip > 0 {
				n := min(skip, len(p))
				p, skip = p[n:], skip-n
			}
			if len(p) < mcbp.HeaderLen {
				break
			}
			body := int(binary.BigEndian.Uint32(p[8:]))
			if len(p) < min(head, mcbp.HeaderLen+body) {
				break
			}
			more, err := each(p)
			if err != nil || !more {
				return err
			}
			skip = mcbp.HeaderLen + body
		}
		have = copy(buf, p)
	}
}

// readTap dumps vbuckets, acknowledges what is to be acknowledged and discards
// everything.
func readTap(ctx context.Context, addr string, vbs []uint16) error {
	conn, err := cluster.DialKV(ctx, cluster.KVConfig{Addr: addr, Bucket: "default"})
	if err != nil {
		return err
	}
	defer conn.Close()
	c := mcbp.TapConnect{
		Name: fmt.Sprintf("raw-%d", vbs[0]), VBuckets: vbs,
		Flags: mcbp.TapDump | mcbp.TapSupportAck | mcbp.TapListVBuckets | mcbp.TapFixFlagByteorder,
	}
	nc := conn.NetConn()
	if _, err := nc.Write(c.Append(nil)); err != nil {
		return err
	}
	var ack []byte
	err = packets(nc, func(p []byte) (bool, error) {
		if binary.BigEndian.Uint16(p[mcbp.HeaderLen+2:])&mcbp.TapMsgAck == 0 {
			return true, nil
		}
		ack = mcbp.AppendTapAck(ack[:0], mcbp.Opcode(p[1]), binary.BigEndian.Uint32(p[12:]), mcbp.StatusOK)
		_, err := nc.Write(ack)
		return true, err
	})
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// readDcp streams vbuckets to their ends, acknowledges quarters of the window and discards
// everything.
func readDcp(ctx context.Context, addr string, vbs []uint16) error {
	s, err := dialDcp(ctx, addr, vbs...)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	if err := s.request(); err != nil {
		return err
	}
	nc := s.conn.NetConn()
	open, due := len(vbs), uint32(0)
	var ack []byte
	return packets(nc, func(p []byte) (bool, error) {
		if p[0] != mcbp.MagicRequest {
			return true, nil
		}
		if due += mcbp.HeaderLen + binary.BigEndian.Uint32(p[8:]); due >= dcpWindow/4 {
			ack = mcbp.AppendDcpBufferAck(ack[:0], due)
			due = 0
			if _, err := nc.Write(ack); err != nil {
				return false, err
			}
		}
		if mcbp.Opcode(p[1]) == mcbp.OpDcpStreamEnd {
			open--
		}
		return open > 0, nil
	})
}
