package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// DefaultName is the name of the scope and of the collection that every bucket
// begins with.
const DefaultName = "_default"

// Manifest lists the scopes and collections of a bucket (7.0 and later).
type Manifest struct {
	UID    uint64 // grows with every change
	Scopes []Scope
}

// Scope is a scope of a bucket.
type Scope struct {
	ID          uint32
	Name        string
	Collections []Collection
}

// Collection is a collection of a scope. Its id is what keys carry in front.
type Collection struct {
	ID     uint32
	Name   string
	MaxTTL uint32 // seconds, 0 = none of its own
}

// Path is how a collection is written: "scope.collection".
func Path(scope, collection string) string { return scope + "." + collection }

// Lookup returns a collection by the names of its scope and its own.
func (m *Manifest) Lookup(scope, collection string) (Collection, bool) {
	for i := range m.Scopes {
		if m.Scopes[i].Name != scope {
			continue
		}
		for _, c := range m.Scopes[i].Collections {
			if c.Name == collection {
				return c, true
			}
		}
	}
	return Collection{}, false
}

// ByID returns the collection with an id and the scope that it is in.
func (m *Manifest) ByID(id uint32) (scope Scope, collection Collection, ok bool) {
	for i := range m.Scopes {
		for _, c := range m.Scopes[i].Collections {
			if c.ID == id {
				return m.Scopes[i], c, true
			}
		}
	}
	return Scope{}, Collection{}, false
}

// Scope returns a scope by its name.
func (m *Manifest) Scope(name string) (Scope, bool) {
	for i := range m.Scopes {
		if m.Scopes[i].Name == name {
			return m.Scopes[i], true
		}
	}
	return Scope{}, false
}

// DefaultManifest is what a bucket begins with, and what a server before 7.0 has.
func DefaultManifest() *Manifest {
	return &Manifest{Scopes: []Scope{{Name: DefaultName, Collections: []Collection{{Name: DefaultName}}}}}
}

// parseHexID reads an id as servers write it: hexadecimal text without 0x.
func parseHexID(text string, bits int) (uint64, error) {
	id, err := strconv.ParseUint(text, 16, bits)
	if err != nil {
		return 0, fmt.Errorf("is %s, which is no hexadecimal number of %d bits", quote(text), bits)
	}
	return id, nil
}

// ParseManifest decodes the JSON of a manifest. It refuses ids and names that
// occur twice: items could land in the wrong collection.
func ParseManifest(body []byte) (*Manifest, error) {
	var doc struct {
		UID    string `json:"uid"`
		Scopes []struct {
			UID         string `json:"uid"`
			Name        string `json:"name"`
			Collections []struct {
				UID    string `json:"uid"`
				Name   string `json:"name"`
				MaxTTL *int64 `json:"maxTTL"`
			} `json:"collections"`
		} `json:"scopes"`
	}
	if err := decodeJSON(body, &doc); err != nil {
		return nil, fmt.Errorf("the manifest of collections: %w", err)
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("the manifest of collections: %w", fmt.Errorf(format, args...))
	}
	if doc.Scopes == nil {
		return nil, bad("it has no scopes")
	}
	m := &Manifest{}
	var err error
	if m.UID, err = parseHexID(doc.UID, 64); err != nil {
		return nil, bad("its uid %w", err)
	}
	scopeIDs, scopeNames, ids := map[uint32]bool{}, map[string]bool{}, map[uint32]bool{}
	for _, sd := range doc.Scopes {
		id, err := parseHexID(sd.UID, 32)
		if err != nil {
			return nil, bad("the id of scope %s %w", quote(sd.Name), err)
		}
		s := Scope{ID: uint32(id), Name: sd.Name}
		if s.Name == "" || scopeIDs[s.ID] || scopeNames[s.Name] {
			return nil, bad("scope %s (id %x) has no name or is there twice", quote(s.Name), s.ID)
		}
		scopeIDs[s.ID], scopeNames[s.Name] = true, true
		names := map[string]bool{}
		for _, cd := range sd.Collections {
			id, err := parseHexID(cd.UID, 32)
			if err != nil {
				return nil, bad("the id of collection %s %w", quote(Path(s.Name, cd.Name)), err)
			}
			c := Collection{ID: uint32(id), Name: cd.Name}
			// A negative limit, or none, is "no limit of its own".
			if cd.MaxTTL != nil && *cd.MaxTTL > 0 {
				c.MaxTTL = uint32(min(*cd.MaxTTL, 1<<32-1))
			}
			if c.Name == "" || ids[c.ID] || names[c.Name] {
				return nil, bad("collection %s (id %x) has no name or is there twice", quote(Path(s.Name, c.Name)), c.ID)
			}
			ids[c.ID], names[c.Name] = true, true
			s.Collections = append(s.Collections, c)
		}
		m.Scopes = append(m.Scopes, s)
	}
	return m, nil
}

// Manifest asks the node for the bucket's scopes and collections. Servers before
// 7.0 have none: an error with code no-collections; DefaultManifest stands for
// what they hold.
func (c *Conn) Manifest(ctx context.Context) (*Manifest, error) {
	const op = "read the manifest of collections"
	none := func(err error) error {
		return &pump.Error{
			Class: pump.ClassUsage, Code: "no-collections", Op: c.name() + ": " + op, Err: err,
			Hint: "Collections exist from Couchbase Server 7.0 on.",
		}
	}
	if c.version != (Version{}) && !c.version.AtLeast(7, 0) {
		return nil, none(fmt.Errorf("the node is Couchbase Server %s", c.version))
	}
	f, err := c.ask(ctx, mcbp.OpGetManifest, 0, nil, nil, nil)
	if err != nil {
		return nil, err
	}
	switch f.Status() {
	case mcbp.StatusOK:
	case mcbp.StatusUnknown, mcbp.StatusNotSupported:
		return nil, none(&StatusError{Status: f.Status()})
	default:
		return nil, c.Refused(op, &f)
	}
	m, err := ParseManifest(f.Value())
	if err != nil {
		return nil, &pump.Error{Code: "kv-protocol", Op: c.name() + ": " + op, Err: err}
	}
	return m, nil
}

// EnsureCollection makes sure that a collection exists, creates it and its scope
// where they do not, and waits until every data node of the bucket knows it: a
// node that does not would refuse its items. maxTTL (seconds, 0 = none) is only
// for a collection that it creates. It waits for Config.MapWait at most, and returns
// whether it created the collection.
//
// Errors besides those of Do and DialKV: names that servers refuse (class usage),
// a user without the permission (denied), nodes that do not know the collection
// in time (code collections-wait, retryable).
func (c *Client) EnsureCollection(ctx context.Context, b *Bucket, scope, collection string, maxTTL uint32) (created bool, err error) {
	m, err := c.Manifest(ctx, b.Name)
	if err != nil {
		return false, err
	}
	if _, have := m.Lookup(scope, collection); !have {
		if _, have := m.Scope(scope); !have {
			if err := c.CreateScope(ctx, b.Name, scope); err != nil {
				return false, err
			}
		}
		if err := c.CreateCollection(ctx, b.Name, scope, collection, maxTTL); err != nil {
			return false, err
		}
		created = true
	}
	for _, n := range b.Nodes {
		if n.KV == "" {
			continue
		}
		if err := c.awaitCollection(ctx, b, n.KV, scope, collection); err != nil {
			return created, err
		}
	}
	return created, nil
}

func (c *Client) awaitCollection(ctx context.Context, b *Bucket, addr, scope, collection string) error {
	conn, err := DialKV(ctx, c.KV(b, addr))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.clock = c.clock
	op := fmt.Sprintf("%s: wait for collection %s", conn.name(), quote(Path(scope, collection)))
	delay, start := 10*time.Millisecond, c.clock.now()
	for {
		m, err := conn.Manifest(ctx)
		if err != nil {
			return err
		}
		if _, ok := m.Lookup(scope, collection); ok {
			return nil
		}
		waited := c.clock.now().Sub(start)
		if waited >= c.mapWait {
			return &pump.Error{
				Code: "collections-wait", Op: op, Retry: true,
				Err: fmt.Errorf("after %v the node still does not know it (manifest %x)", c.mapWait, m.UID),
			}
		}
		if err := c.clock.pause(ctx, min(delay, c.mapWait-waited)); err != nil {
			return stopped(op, err)
		}
		delay = min(2*delay, time.Second)
	}
}

func scopesPath(bucket string) string {
	return "/pools/default/buckets/" + url.PathEscape(bucket) + "/scopes"
}

// Manifest reads the bucket's scopes and collections from the REST port.
func (c *Client) Manifest(ctx context.Context, bucket string) (*Manifest, error) {
	asked := fmt.Sprintf("read the collections of bucket %q", clip(bucket, 100))
	path := scopesPath(bucket)
	r, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	switch r.Status {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, c.noCollections(asked, r)
	default:
		return nil, c.Unexpected(asked, r)
	}
	m, err := ParseManifest(r.Body)
	if err != nil {
		return nil, c.badDocument(asked, path, err)
	}
	return m, nil
}

// noCollections explains a 404 of what lies under a bucket.
func (c *Client) noCollections(asked string, r *Response) error {
	return &pump.Error{
		Class: pump.ClassUsage, Code: "no-collections", Op: fmt.Sprintf("%s %s: %s", c.role, c.URL(), asked),
		Err:  fmt.Errorf("the server answers %s", c.said(r)),
		Hint: "Collections exist from Couchbase Server 7.0 on. Is the name of the bucket right, and does the scope exist?",
	}
}

// CreateScope creates a scope; one that exists already is no error.
func (c *Client) CreateScope(ctx context.Context, bucket, scope string) error {
	asked := fmt.Sprintf("create scope %s in bucket %s", quote(scope), quote(bucket))
	return c.create(ctx, asked, scopesPath(bucket), url.Values{"name": {scope}})
}

// CreateCollection creates a collection in a scope that exists; one that exists
// already is no error. maxTTL is in seconds, 0 = none.
func (c *Client) CreateCollection(ctx context.Context, bucket, scope, collection string, maxTTL uint32) error {
	asked := fmt.Sprintf("create collection %s in bucket %s", quote(Path(scope, collection)), quote(bucket))
	form := url.Values{"name": {collection}}
	if maxTTL > 0 {
		form.Set("maxTTL", strconv.FormatUint(uint64(maxTTL), 10))
	}
	if scope == "" || scope == "." || scope == ".." {
		return pump.Usagef("%s: %s: %q is not the name of a scope", c.role, asked, scope)
	}
	return c.create(ctx, asked, scopesPath(bucket)+"/"+url.PathEscape(scope)+"/collections", form)
}

func (c *Client) create(ctx context.Context, asked, path string, form url.Values) error {
	r, err := c.Do(ctx, http.MethodPost, path, form)
	if err != nil {
		return err
	}
	switch {
	case r.Status == http.StatusOK || r.Status == http.StatusAccepted:
		return nil
	case r.Status == http.StatusBadRequest && strings.Contains(string(r.Body), "already exists"):
		return nil // somebody else was faster
	case r.Status == http.StatusNotFound:
		return c.noCollections(asked, r)
	case r.Status == http.StatusBadRequest:
		return &pump.Error{
			Class: pump.ClassUsage, Code: "rest-status", Op: fmt.Sprintf("%s %s: %s", c.role, c.URL(), asked),
			Err: errors.New("the server answers " + c.said(r)),
		}
	}
	return c.Unexpected(asked, r)
}
