// Package pump moves items from any Source to any Sink.
//
// # Writing a sink
//
//  1. Write a type with Lanes and Close. Lanes returns as many independent
//     writers as your destination likes, at most want; one is fine.
//  2. A Lane is used by one goroutine. Write sends every item of the batch and
//     returns when each has a verdict: b.Done(i) when the destination confirmed
//     it, b.Settle(i, verdict, why) otherwise. Do not retry, sleep or reorder:
//     the engine owns retries, backoff and order.
//  3. Return an error from Write only when going on makes no sense (wrong
//     password, destination is no such thing). A lost connection is not that:
//     settle what has no answer with Retry and connect again in the next Write.
//  4. Keep no item's bytes after Write has returned, and change none: they may be
//     sent again.
//  5. Declare your options as a struct with tags and register the sink with
//     RegisterSink; the registry makes flags, help and documentation of it.
//  6. Pass pumptest.TestSink.
//
// # Writing a source
//
//  1. Streams returns the independent parts of what there is to read. Each is
//     read by one goroutine, several streams at once.
//  2. Read fills the batch it is given and returns. It returns io.EOF only when
//     the stream is proven complete (invariant 4): a closed connection is not,
//     and an error that wraps io.EOF is an error. Items in the batch count
//     whatever error comes with them.
//  3. Errors that another try may mend are marked with Retryable; the engine
//     closes the stream and opens it again, a limited number of times.
//  4. Set Batch.Marks when a position is reached from which the stream can go on.
//     At io.EOF the last mark of every part must be Complete.
//  5. Pass pumptest.TestSource.
//
// The ten invariants that the code cites by number are in docs/architecture.md.
package pump

import "context"

// Source is a place to read from.
type Source interface {
	// Streams returns the independent parts of the source. The engine calls it
	// once. An error here means that the source cannot be read at all.
	Streams(ctx context.Context) ([]Stream, error)
	// Close releases what the source holds. The engine has closed all streams.
	Close() error
}

// Stream is one independent part of a source: a node, a group of vbuckets, a
// file. One goroutine uses it.
type Stream interface {
	// ID names the stream, the same in every run: it is the checkpoint's key.
	ID() string
	// Open prepares reading behind the given marks; none means from the start.
	// They are of this run or of an earlier one, in which the vbuckets may have
	// been divided into other streams: those of vbuckets that this stream has not
	// are to be ignored. A mark that does not fit what is there now is an error.
	// Open is called again after Close when a retryable error ended the reading.
	Open(ctx context.Context, from []Mark) error
	// Read fills b with at least one item, or returns an error; io.EOF means
	// that the stream is complete, and proven to be. b comes empty and with an
	// arena. Read returns early rather than wait for a full batch.
	Read(ctx context.Context, b *Batch) error
	// Close lets go of connections and files. It is safe to call it twice.
	Close() error
}

// Sink is a place to write to.
type Sink interface {
	// Lanes returns independent writers; want is what the user asked for, 0
	// leaves it to the sink. The engine calls it once and closes the lanes.
	Lanes(ctx context.Context, want int) ([]Lane, error)
	// Close releases what the sink holds, after all lanes were closed. An error
	// means that what was confirmed may not have become durable.
	Close() error
}

// Lane is one writer of a sink. One goroutine uses it.
type Lane interface {
	// Write writes the batch and returns when every item has a verdict. An
	// error stops the run; items without a verdict then count as not written.
	Write(ctx context.Context, b *Batch) error
	Close() error
}

// AheadLane is a Lane that sends one batch behind another before the first one is
// confirmed, so that its connection is never idle. Only a lane itself can be one: a
// wrapper that knows nothing of it has its Write called instead.
//
// When something of the first batch is to be sent again the engine finishes the
// second one as well and sends again from both, the later items of the same keys
// among them (invariant 5). Write is called when nothing is under way.
type AheadLane interface {
	Lane
	// Begin sends the batch. No more than two are under way at once, each with a
	// batch of its own, which stays as it is until Finish has returned. An error
	// stops the run.
	Begin(ctx context.Context, b *Batch) error
	// Finish returns when every item of b, which was begun first, has a verdict.
	// It is Write's second half.
	Finish(ctx context.Context, b *Batch) error
}

// Optional abilities, found with As through any number of wrappers.
type (
	// Checker finds out whether a source or sink can be used, without changing
	// anything. Run asks before it reads the first item; --dry-run asks only this.
	Checker interface {
		Check(ctx context.Context) error
	}
	// Estimator says how much there is to read, for the progress display.
	Estimator interface {
		Estimate(ctx context.Context) (Estimate, error)
	}
	// Distinct is a source that may know that each of its documents (collection and
	// key) comes once. Should one come again, because a stream was opened anew, then
	// with the same bytes. The order of such items does not matter, so each batch goes
	// to the lane that has least to do. A wrapper that changes keys must not let this show.
	Distinct interface {
		DistinctKeys() bool
	}
	// Router decides the lane (an index below the number of lanes) of an item.
	// It may fill in the item's vbucket. It is called concurrently. Without a
	// router the engine routes by vbucket, and by key where there is none. A vbucket
	// may get another lane when all of it that was sent is Done or Skipped (not at a
	// Committer). A router must always give the same key the same lane (invariant 5).
	Router interface {
		Route(it *Item) int
	}
	// Acknowledger is told which marks of a stream are confirmed, in order, so
	// that more can be asked for: flow control. What may be forgotten is said to
	// a Truncater only. Streams may implement it. The call comes from another
	// goroutine than Read's, also while Read is blocked; one at a time. A mark that
	// is Lost is not confirmed: it only says that the engine holds nothing any more
	// of what is before it.
	Acknowledger interface {
		Acknowledge(ctx context.Context, confirmed []Mark) error
	}
	// Progresser is a stream that knows how many of its parts are complete. The
	// engine gives a stream a fresh set of attempts whenever the number grew.
	Progresser interface {
		Progress() int
	}
	// Unwrapper is a wrapper around another source, stream, sink or lane.
	Unwrapper interface {
		Unwrap() any
	}
)

// Estimate is how much there is to read; 0 means unknown.
type Estimate struct {
	Items uint64
	Bytes uint64
}

// As finds the ability T on v or on what v wraps.
func As[T any](v any) (T, bool) {
	for v != nil {
		if t, ok := v.(T); ok {
			return t, true
		}
		u, ok := v.(Unwrapper)
		if !ok {
			break
		}
		v = u.Unwrap()
	}
	var none T
	return none, false
}
