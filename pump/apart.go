package pump

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// Identity says what a source reads or a sink writes, by whatever address it is
// reached.
type Identity struct {
	Name   string   // for messages
	UUID   string   // of the bucket; "" where it is not known
	Bucket string   // "" where an address is all that is known
	KV     []string // host:port of the data ports
	// Resolves is how the bucket tells which of two versions of a document is newer,
	// "revision" or "time"; "" where it is not known or the sink asks for no such
	// decision.
	Resolves string
}

// Volatile is an optional ability of sinks that may forget what they confirmed, such
// as a server that holds everything in memory and is started anew: Life names the
// time in which nothing was forgotten, for messages too. "" means that it does not
// say. A checkpoint of another life covers what may be gone.
type Volatile interface {
	Life(ctx context.Context) (string, error)
}

// The values of Identity.Resolves.
const (
	ResolvesRevision = "revision"
	ResolvesTime     = "time"
)

// Identifier is an optional ability of sources and sinks that are a bucket.
type Identifier interface {
	Identity(ctx context.Context) (Identity, error)
}

// Apart returns sink such that it refuses to be used (class usage, code same-ends)
// when it turns out to be what source reads: by the bucket's uuid, and where one
// side does not know that, by a common data port and the bucket's name. It refuses as
// well (code conflict-resolution) when the two decide by different things which
// version of a document is newer: older ones would replace newer ones without a
// word. Ends without an Identity come back as they are.
func Apart(source Source, sink Sink) Sink {
	from, ok := As[Identifier](source)
	if !ok {
		return sink
	}
	to, ok := As[Identifier](sink)
	if !ok {
		return sink
	}
	return &apart{Sink: sink, from: from, to: to}
}

// apart is a sink that is not to be its own source.
type apart struct {
	Sink
	from, to Identifier
	proven   bool // they were asked, and differ
}

// Unwrap returns the sink, whose other abilities count.
func (a *apart) Unwrap() any { return a.Sink }

var (
	errSameEnds = errors.New("source and destination are the same bucket")
	errResolves = errors.New("source and destination resolve conflicts differently")
)

// Check compares both ends, then asks the sink.
func (a *apart) Check(ctx context.Context) error {
	// Where an end cannot be asked its own check says why; if it does not, Lanes
	// asks again and insists.
	if err := a.compare(ctx); errors.Is(err, errSameEnds) || errors.Is(err, errResolves) {
		return err
	}
	if c, ok := As[Checker](a.Sink); ok {
		return c.Check(ctx)
	}
	return nil
}

// Lanes returns the sink's, if both ends were found to differ.
func (a *apart) Lanes(ctx context.Context, want int) ([]Lane, error) {
	if !a.proven {
		if err := a.compare(ctx); err != nil {
			return nil, err
		}
	}
	return a.Sink.Lanes(ctx, want)
}

func (a *apart) compare(ctx context.Context) error {
	from, err := a.from.Identity(ctx)
	if err != nil {
		return err
	}
	to, err := a.to.Identity(ctx)
	if err != nil {
		return err
	}
	if why := from.same(ctx, to); why != "" {
		return &Error{Class: ClassUsage, Code: "same-ends", Op: fmt.Sprintf("copy %s to %s", from.Name, to.Name),
			Err:  fmt.Errorf("%w: %s", errSameEnds, why),
			Hint: "Name another bucket with -B, or another destination."}
	}
	if from.Resolves != "" && to.Resolves != "" && from.Resolves != to.Resolves {
		return &Error{Class: ClassUsage, Code: "conflict-resolution", Op: fmt.Sprintf("copy %s to %s", from.Name, to.Name),
			Err: fmt.Errorf("%w: the source by %s, the destination by %s, so an older document could pass for the newer one", errResolves, from.Resolves, to.Resolves),
			Hint: "-x conflict-resolution=false writes what the source holds over what the destination holds, and keeps CAS and revision: right for a destination that nobody else writes to. " +
				"-x with-meta=false does the same with a new CAS and revision. --destination-operation add writes only what the destination does not have."}
	}
	a.proven = true
	return nil
}

// same returns what shows that both are the same bucket, "" if nothing does.
func (i Identity) same(ctx context.Context, o Identity) string {
	switch {
	case i.UUID != "" && o.UUID != "":
		if i.UUID == o.UUID {
			return "both have the bucket uuid " + i.UUID
		}
		return ""
	case i.Bucket != "" && o.Bucket != "" && i.Bucket != o.Bucket:
		return ""
	}
	have := map[string]bool{}
	for _, addr := range i.KV {
		for _, place := range placesOf(ctx, addr) {
			have[place] = true
		}
	}
	for _, addr := range o.KV {
		for _, place := range placesOf(ctx, addr) {
			if have[place] {
				return "both have the data port " + addr
			}
		}
	}
	return ""
}

// placesOf returns the spellings of a host:port that are compared: itself, and the
// addresses that a name stands for.
func placesOf(ctx context.Context, addr string) []string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return []string{addr}
	}
	host = strings.ToLower(host)
	spell := func(h string) string {
		ip := net.ParseIP(h)
		switch {
		case h == "localhost", ip != nil && ip.IsLoopback():
			h = "localhost"
		case ip != nil:
			h = ip.String()
		}
		return net.JoinHostPort(h, port)
	}
	places := []string{spell(host)}
	if net.ParseIP(host) == nil && host != "localhost" {
		// A name that is not known is still equal to itself.
		found, _ := net.DefaultResolver.LookupHost(ctx, host)
		for _, ip := range found {
			places = append(places, spell(ip))
		}
	}
	return places
}
