package mc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cbpump/cbpump/cluster"
	"github.com/cbpump/cbpump/pump"
)

// MaxCollectionKey is the longest key in bytes in a collection other than the
// default one.
const MaxCollectionKey = 246

// collections finds the destination's collection of an item.
type collections struct {
	mapping map[string]string // source's "scope.collection" → destination's

	// gen counts how often what is known was thrown away; lanes keep copies.
	gen atomic.Uint64

	// asking has one slot, for who looks up or creates: the others wait no longer than
	// their own contexts last.
	asking chan struct{}
	told   map[uint32]bool // its: collections whose maximum time to live was logged

	mu       sync.Mutex        // never held while somebody is asked
	manifest *cluster.Manifest // nil: not read, or no longer believed
	doubted  bool              // even the default collection must be looked up
}

// target is where the items of one collection go.
type target struct {
	id    uint32
	named bool // not the default collection
}

// parseMapping reads option map-collections.
func parseMapping(text string) (map[string]string, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	m := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		from, to, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok || !isPath(from) || !isPath(to) {
			return nil, errors.New("is not of the form scope.collection=scope.collection, several separated by commas")
		}
		if _, twice := m[from]; twice {
			return nil, fmt.Errorf("says twice where %q goes", from)
		}
		m[from] = to
	}
	return m, nil
}

func isPath(s string) bool {
	scope, name, ok := strings.Cut(s, ".")
	return ok && scope != "" && name != "" && !strings.Contains(name, ".") && !strings.ContainsAny(s, "= \t")
}

// known returns what is known of the manifest.
func (c *collections) known() (m *cluster.Manifest, doubted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.manifest, c.doubted
}

func (c *collections) learn(m *cluster.Manifest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.manifest = m
}

// forget throws away what is known of the manifest, after a node did not know a
// collection.
func (c *collections) forget(gen uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gen.Load() == gen { // else another lane did
		c.manifest, c.doubted = nil, true
		c.gen.Add(1)
	}
}

// collection returns where items of collection c go. Errors are final (a missing
// collection) or may be retried (the REST port does not answer).
func (s *CBSink) collection(ctx context.Context, c *pump.Collection) (target, error) {
	k := &s.collections
	from := c.String()
	to, mapped := k.mapping[from]
	if !mapped {
		to = from
	}
	scope, name, _ := strings.Cut(to, ".")
	isDefault := scope == cluster.DefaultName && name == cluster.DefaultName
	if _, doubted := k.known(); isDefault && !doubted {
		return target{}, nil
	}
	select {
	case k.asking <- struct{}{}:
		defer func() { <-k.asking }()
	case <-ctx.Done():
		return target{}, context.Cause(ctx)
	}
	v, err := s.current(ctx)
	if err != nil {
		return target{}, err
	}
	manifest, _ := k.known()
	if manifest == nil {
		if manifest, err = s.rest().Manifest(ctx, s.cfg.Bucket); err != nil {
			return target{}, s.missingCollection(from, to, err)
		}
		k.learn(manifest)
	}
	found, ok := manifest.Lookup(scope, name)
	if !ok && s.cfg.Options.CreateCollections {
		if _, err := s.rest().EnsureCollection(ctx, v.bucket, scope, name, 0); err != nil {
			return target{}, err
		}
		s.log.Info("created a collection", "bucket", s.cfg.Bucket, "collection", to)
		k.learn(nil)
		if manifest, err = s.rest().Manifest(ctx, s.cfg.Bucket); err != nil {
			return target{}, err
		}
		k.learn(manifest)
		found, ok = manifest.Lookup(scope, name)
	}
	if !ok {
		return target{}, s.missingCollection(from, to, errors.New("the destination does not have it"))
	}
	if found.MaxTTL > 0 && !k.told[found.ID] {
		if k.told == nil {
			k.told = map[uint32]bool{}
		}
		k.told[found.ID] = true
		s.log.Warn("the collection has a maximum time to live: items that live longer, or for ever, get an earlier expiry", "collection", to, "seconds", found.MaxTTL)
	}
	return target{id: found.ID, named: !isDefault}, nil
}

// missingCollection names what is missing. Errors that another try may mend, and
// those of access, stay what they are.
func (s *CBSink) missingCollection(from, to string, why error) error {
	if mayRetry(why) || pump.ClassOf(why) == pump.ClassDenied {
		return why
	}
	what := "collection " + to
	if from != to {
		what += ", where " + from + " is to go,"
	}
	return pump.Begun(&pump.Error{Class: pump.ClassUsage, Code: "no-collection", Op: s.op(what), Err: why,
		Hint: "create it, or let -x create-collections=true do it, or send its items elsewhere with -x map-collections=" + from + "=scope.collection; collections exist from 7.0 on"})
}

// Manifest returns the destination's manifest as the last lookup read it, for
// dialects that must tell nodes of it. nil: only the default collection is used.
func (s *CBSink) Manifest() *cluster.Manifest {
	m, _ := s.collections.known()
	return m
}

// rest returns the client of the node that answered last.
func (s *CBSink) rest() *cluster.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.via
}
