package pump

import (
	"context"
	"fmt"
	"time"
)

// Optional abilities around the items, found with As.
type (
	// Committer is a sink whose output counts only as a whole, such as a file.
	// Run calls Commit once, after the lanes were closed, and only when every
	// stream was proven complete (invariant 4) and every item has a final
	// verdict. A sink that is closed without it leaves nothing behind that could
	// be taken for complete.
	Committer interface {
		Commit(ctx context.Context) error
	}
	// Attester is a sink that can find out, once everything was confirmed, whether
	// it still holds it. Run asks it once, after the lanes were closed and before
	// Commit; an error is the run's.
	Attester interface {
		Attest(ctx context.Context) error
	}
	// Omitter is a source that found things which it was not to give, such as a
	// file that is no document among documents. Once everything was read, it says
	// so by an error of ClassPartial that names them, nil if there was nothing: the
	// run is complete then, and its result partial (exit code 3).
	Omitter interface {
		Omitted() error
	}
	// Definer is a source that holds more than items: design documents, index
	// definitions.
	Definer interface {
		Definitions(ctx context.Context) ([]Definition, error)
	}
	// DefinitionTaker is a sink that keeps definitions. It returns those it has
	// no place for. Run calls it at most once, before Commit, and not at all when
	// the source has none.
	DefinitionTaker interface {
		TakeDefinitions(ctx context.Context, all []Definition) (leftOut []Definition, err error)
	}
)

// DefinitionKind says what a Definition defines.
type DefinitionKind string

// The kinds of definitions.
const (
	DesignDocuments DefinitionKind = "design documents"
	Indexes         DefinitionKind = "index definitions"
	FullTextIndexes DefinitionKind = "full text index definitions"
)

// Definition is all that a bucket defines of one kind.
type Definition struct {
	Kind DefinitionKind
	// JSON is in the form of the backup folder's design.json, index.json or
	// fts_index.json (docs/backup.md).
	JSON []byte
}

// finish ends a run in which everything was read and settled: it closes the
// lanes, passes the definitions on, and has the sink commit.
func (e *engine) finish(ctx context.Context, lanes []Lane) error {
	var failed error
	for _, l := range lanes {
		if err := l.Close(); err != nil && failed == nil {
			failed = fmt.Errorf("finish writing: %w", err)
		}
	}
	if failed != nil {
		return failed
	}
	if a, ok := As[Attester](e.cfg.Sink); ok {
		if err := e.attest(ctx, a); err != nil {
			return err
		}
	}
	if o, ok := As[Omitter](e.cfg.Source); ok {
		e.omitted = o.Omitted()
	}
	if d, ok := As[Definer](e.cfg.Source); ok {
		all, err := d.Definitions(ctx)
		if err != nil {
			return fmt.Errorf("read the definitions of the source: %w", err)
		}
		if e.leftOut, err = e.define(ctx, all); err != nil {
			return fmt.Errorf("write the definitions of the source: %w", err)
		}
		for _, left := range e.leftOut {
			e.cfg.Log.Warn("the destination has no place for the source's "+string(left.Kind), "bytes", len(left.JSON))
		}
	}
	if c, ok := As[Committer](e.cfg.Sink); ok {
		if err := c.Commit(ctx); err != nil {
			return fmt.Errorf("complete the destination: %w", err)
		}
	}
	return nil
}

// attest asks the sink again while the destination cannot be asked: everything is
// written, and a run does not fail for one connection that breaks then.
func (e *engine) attest(ctx context.Context, a Attester) error {
	set := &e.cfg.Settings
	pause := backoff{min: set.RetryMin, max: set.RetryMax}
	for began := time.Now(); ; {
		err := a.Attest(ctx)
		if err == nil || !IsRetryable(err) || ctx.Err() != nil {
			return err
		}
		if waited := time.Since(began); waited >= set.RetryTime {
			return gaveUp(err, "given up after "+waited.Round(time.Millisecond).String())
		}
		e.cfg.Log.Warn("everything is written; whether the destination still holds it cannot be asked and is asked again", "reason", err)
		if err := pause.wait(ctx); err != nil {
			return err
		}
	}
}

func (e *engine) define(ctx context.Context, all []Definition) (leftOut []Definition, err error) {
	if len(all) == 0 {
		return nil, nil
	}
	if taker, ok := As[DefinitionTaker](e.cfg.Sink); ok {
		return taker.TakeDefinitions(ctx, all)
	}
	return all, nil
}
