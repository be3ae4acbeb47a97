package mc

import (
	"context"
	"strings"
	"testing"

	"github.com/cbpump/cbpump/internal/realmc"
	"github.com/cbpump/cbpump/internal/sinktest"
	"github.com/cbpump/cbpump/pump"
)

// TestNewLifeEndsTheRun: a memcached that was started anew has lost what it had
// confirmed, so nothing may go on as if it had not.
func TestNewLifeEndsTheRun(t *testing.T) {
	srv := realmc.Start(t)
	sink, err := New(Config{Addr: srv.Addr})
	if err != nil {
		t.Fatal(err)
	}
	first, err := sink.Life(t.Context())
	if err != nil || !strings.HasPrefix(first, "process ") {
		t.Fatalf("life %q, %v", first, err)
	}
	if again, err := sink.Life(t.Context()); again != first || err != nil {
		t.Fatalf("the same life is %q, then %q (%v)", first, again, err)
	}
	lane := sinktest.Lane(t, sink)
	sinktest.Verdicts(t, sinktest.Write(t, lane, item("a", "1")), pump.Done)
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	sinktest.Verdicts(t, sinktest.Write(t, lane, item("b", "2")), pump.Retry) // the connection is gone
	b := sinktest.Batch(item("b", "2"))
	err = lane.Write(context.Background(), b)
	if pump.CodeOf(err) != "destination-restarted" || pump.IsRetryable(err) || b.Verdict(0) != pump.Unconfirmed {
		t.Fatalf("%v, the item is %s", err, b.Verdict(0))
	}
	if err := sink.Attest(t.Context()); pump.CodeOf(err) != "destination-restarted" {
		t.Fatalf("it attests %v", err)
	}
}

// TestNewLifeAfterTheLastWrite: the end of a run looks once more.
func TestNewLifeAfterTheLastWrite(t *testing.T) {
	srv := realmc.Start(t)
	sink, err := New(Config{Addr: srv.Addr})
	if err != nil {
		t.Fatal(err)
	}
	sinktest.Verdicts(t, sinktest.Write(t, sinktest.Lane(t, sink), item("a", "1")), pump.Done)
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := sink.Attest(t.Context()); pump.CodeOf(err) != "destination-restarted" {
		t.Fatalf("it attests %v", err)
	}
}
