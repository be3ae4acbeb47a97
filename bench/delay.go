package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spf13/pflag"
)

// delayMain is the process of a proxy that adds half a round trip to each
// direction and limits nothing else.
func delayMain(args []string, in io.Reader, out io.Writer) error {
	f := pflag.NewFlagSet(modeDelay, pflag.ContinueOnError)
	to := f.String("to", "", "address to go on to")
	trip := f.Duration("trip", 0, "round trip to add")
	if err := f.Parse(args); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { delayed(c, *to, *trip/2) })
		}
	})
	if err := json.NewEncoder(out).Encode(served{KV: ln.Addr().String()}); err != nil {
		return errors.Join(err, ln.Close())
	}
	_, err = io.Copy(io.Discard, in)
	return errors.Join(err, ln.Close())
}

func delayed(near net.Conn, to string, by time.Duration) {
	far, err := net.Dial("tcp", to)
	if err != nil {
		_ = near.Close()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { forward(far, near, by) })
	wg.Go(func() { forward(near, far, by) })
	wg.Wait()
}

// forward passes on what it reads, each piece so much later. When either side has
// closed, both are.
func forward(to, from net.Conn, by time.Duration) {
	type piece struct {
		data []byte
		due  time.Time
	}
	const most = 2048 // pieces under way, of which each has 64 KiB at most
	under, free := make(chan piece, most), make(chan []byte, most)
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := range under {
			time.Sleep(time.Until(p.due)) // the delay that this link is there to add
			if _, err := to.Write(p.data); err != nil {
				_ = from.Close()
			}
			select {
			case free <- p.data[:cap(p.data)]:
			default:
			}
		}
		_ = to.Close()
	})
	for {
		var buf []byte
		select {
		case buf = <-free:
		default:
			buf = make([]byte, 64<<10)
		}
		n, err := from.Read(buf)
		if n > 0 {
			under <- piece{buf[:n], time.Now().Add(by)}
		}
		if err != nil {
			break
		}
	}
	close(under)
	wg.Wait()
}

// measureDelays runs one pair of which the destination is farther and farther away,
// in turn with the same behind a proxy that adds nothing.
func measureDelays(ctx context.Context, o *benchOptions, s *stores, r *report, out io.Writer) (err error) {
	const size, goal = 256, 0.70
	p := pairs[0]
	st, err := s.prepareEnds(ctx, p, 4*itemsFor(p, size, o.scale), size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	var proxies []*child
	defer func() {
		for _, c := range proxies {
			err = errors.Join(err, c.Close())
		}
	}()
	at := make([]string, len(o.delays))
	for i, d := range o.delays {
		var where served
		c, err := start(ctx, &where, modeDelay, "--to", st.mc.Addr, "--trip", d.String())
		if err != nil {
			return err
		}
		proxies, at[i] = append(proxies, c), where.KV
	}
	rates, peaks := make([][]float64, len(at)), make([]int64, len(at))
	for round := -1; round < o.rounds; round++ {
		for i := range at {
			st.away = at[i]
			one, err := st.measure(ctx, true)
			if err != nil {
				return err
			}
			if round >= 0 {
				rates[i], peaks[i] = append(rates[i], one.Rate), max(peaks[i], one.Peak)
			}
		}
	}
	for i, d := range o.delays {
		line := row{Pair: fmt.Sprintf("%s, %s away", p.name, d), Size: size, Items: st.items, Goal: goal, Rounds: o.rounds, When: time.Now().UTC().Truncate(time.Minute),
			Limit: median(rates[0]), Pump: median(rates[i]), Peak: peaks[i]}
		var ratios []float64
		for j := range rates[i] {
			ratios = append(ratios, rates[i][j]/rates[0][j])
		}
		line.Ratio, line.Least, line.Most = median(ratios), slices.Min(ratios), slices.Max(ratios)
		r.Far = append(r.Far, line)
		fmt.Fprintln(out, line.String())
	}
	return nil
}
