package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestSharedIsAskedOnce(t *testing.T) {
	for name, want := range map[string]error{"answer": nil, "error": errors.New("no answer")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s Shared[int]
				var asked atomic.Int32
				answer := make(chan struct{})
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						n, err := s.Do(t.Context(), func(context.Context) (int, error) {
							asked.Add(1)
							<-answer
							return 7, want
						})
						if n != 7 || err != want {
							t.Errorf("%d, %v", n, err)
						}
					})
				}
				synctest.Wait()
				close(answer)
				wg.Wait()
				if asked.Load() != 1 {
					t.Errorf("asked %d times", asked.Load())
				}
				// What is over is not kept.
				if n, err := s.Do(t.Context(), func(context.Context) (int, error) { return 8, nil }); n != 8 || err != nil {
					t.Errorf("afterwards: %d, %v", n, err)
				}
			})
		})
	}
}

// A caller that is stopped returns alone: nobody is stopped with it, and nobody
// gets its error.
func TestSharedCallersStopAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Shared[int]
		gone := errors.New("no longer wanted")
		first, stopFirst := context.WithCancel(t.Context())
		second, stopSecond := context.WithCancelCause(t.Context())
		answer := make(chan struct{})
		ask := func(ctx context.Context) (int, error) {
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-answer:
				return 7, nil
			}
		}
		var wg sync.WaitGroup
		var secondDone atomic.Bool
		wg.Go(func() {
			if _, err := s.Do(first, ask); !errors.Is(err, context.Canceled) {
				t.Errorf("who asked: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			defer secondDone.Store(true)
			if _, err := s.Do(second, ask); err != gone {
				t.Errorf("who waited: %v", err)
			}
		})
		for range 3 {
			wg.Go(func() {
				if n, err := s.Do(t.Context(), ask); n != 7 || err != nil {
					t.Errorf("the others: %d, %v", n, err)
				}
			})
		}
		synctest.Wait()
		stopSecond(gone)
		synctest.Wait()
		if !secondDone.Load() {
			t.Error("who waited goes on waiting")
		}
		stopFirst()
		synctest.Wait()
		close(answer)
		wg.Wait()
	})
}
