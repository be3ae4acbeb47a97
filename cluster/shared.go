package cluster

import (
	"context"
	"sync"
)

// Shared is a question that many ask at the same time and that is put once: who
// asks while it is under way gets that answer or that error too, so that a node
// that stays silent costs all of them together what it costs one. The zero value
// is ready for use.
type Shared[T any] struct {
	mu  sync.Mutex
	now *inquiry[T] // under way, nil if none
}

type inquiry[T any] struct {
	done    chan struct{}
	value   T
	err     error
	stopped bool // there is no answer: who asked was stopped
}

// Do returns what ask returns, or what it returns to another caller that is just
// waiting for it. ask runs in the calling goroutine with the caller's context.
// Each caller waits no longer than its own context lasts; when that of the one who
// asks ends, one of the others asks anew.
func (s *Shared[T]) Do(ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	for {
		s.mu.Lock()
		q := s.now
		if q == nil {
			q = &inquiry[T]{done: make(chan struct{}), stopped: true}
			s.now = q
			s.mu.Unlock()
			s.put(ctx, q, ask)
			return q.value, q.err
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			var none T
			return none, context.Cause(ctx)
		case <-q.done:
		}
		if !q.stopped {
			return q.value, q.err
		}
	}
}

func (s *Shared[T]) put(ctx context.Context, q *inquiry[T], ask func(context.Context) (T, error)) {
	defer func() {
		s.mu.Lock()
		s.now = nil
		s.mu.Unlock()
		close(q.done)
	}()
	q.value, q.err = ask(ctx)
	q.stopped = q.err != nil && ctx.Err() != nil
}
