package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// child is a process of this program in another mode: it is told by lines and
// answers each with a line of JSON.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// start starts a child and reads its first line into first.
func start(ctx context.Context, first any, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.CommandContext(ctx, self, args...)}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(bufio.NewReader(out))
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	if err := c.out.Decode(first); err != nil {
		return nil, errors.Join(fmt.Errorf("bench %s: %w", strings.Join(args, " "), err), c.Close())
	}
	return c, nil
}

// ask sends a line and reads the answer.
func (c *child) ask(line string, answer any) error {
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		return err
	}
	if err := c.out.Decode(answer); err != nil {
		return fmt.Errorf("bench %s: %w", strings.Join(c.cmd.Args[1:], " "), err)
	}
	return nil
}

// Close ends the child and waits for it.
func (c *child) Close() error {
	_ = c.in.Close()
	return c.cmd.Wait()
}

// cpu returns the CPU time that a process has used so far, in seconds.
func cpu(pid int) (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold spaces.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, ticks = 11, 100
	var sum float64
	for _, f := range fields[utime : utime+2] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, err
		}
		sum += n / ticks
	}
	return sum, nil
}

var hwm = regexp.MustCompile(`VmHWM:\s*(\d+) kB`)

// peak returns the most memory in bytes that a process has had resident.
func peak(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	m := hwm.FindSubmatch(status)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return n << 10
}

// pumped is what one run of cbtransfer took.
type pumped struct {
	rawResult
	Peak int64 // bytes
	Done uint64
}

// transfer runs the command once. The clock runs from its start to its end.
func transfer(ctx context.Context, command string, args ...string) (pumped, error) {
	return transferTold(ctx, make(chan int, 1), command, args...)
}

// transferTold is transfer that tells the process id, or 0 if there is none.
func transferTold(ctx context.Context, pid chan<- int, command string, args ...string) (pumped, error) {
	defer close(pid)
	var p pumped
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, command, append([]string{"--json", "-s"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Env = append(os.Environ(), "CB_REST_USERNAME="+simUser, "CB_REST_PASSWORD="+simPassword)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return p, err
	}
	pid <- cmd.Process.Pid
	// The peak that the kernel reports of a dead process may be its parent's.
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		for {
			p.Peak = max(p.Peak, peak(cmd.Process.Pid))
			select {
			case <-over:
				return
			case <-t.C:
			}
		}
	})
	err := cmd.Wait()
	p.Seconds = time.Since(began).Seconds()
	close(over)
	watch.Wait()
	if err != nil {
		return p, fmt.Errorf("%s %s: %w: %s", filepath.Base(command), strings.Join(args, " "), err, said.String())
	}
	p.User, p.Sys = cmd.ProcessState.UserTime().Seconds(), cmd.ProcessState.SystemTime().Seconds()
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	var result struct{ Done uint64 }
	if err := json.Unmarshal(lines[len(lines)-1], &result); err != nil {
		return p, err
	}
	p.Done = result.Done
	return p, nil
}
