package simcluster

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

// Errors of collections.
var (
	ErrNoScope      = errors.New("no such scope")
	ErrNoCollection = errors.New("no such collection")
	ErrManifest     = errors.New("the manifest is not valid")
)

const (
	eventCreateCollection = 0
	eventDropCollection   = 1
	eventCreateScope      = 3
	eventDropScope        = 4

	firstID      = 8 // lower ones are reserved
	maxNamedKey  = 246
	defaultName  = "_default"
	statusNoSID  = mcbp.Status(0x8d)
	statusRename = mcbp.Status(0x8a)
)

// Manifest is the scopes and collections of a bucket.
type Manifest struct {
	UID    uint64
	Scopes []Scope
}

// Scope is one scope of a manifest.
type Scope struct {
	Name        string
	ID          uint32
	Collections []Collection
}

// Collection is one collection of a scope.
type Collection struct {
	Name   string
	ID     uint32
	MaxTTL uint32 // seconds, 0 = none
}

// manifestJSON is a manifest as the wire and REST have it: ids are hex text.
type manifestJSON struct {
	Scopes []scopeJSON `json:"scopes"`
	UID    string      `json:"uid"`
}

type scopeJSON struct {
	Collections []collectionJSON `json:"collections"`
	Name        string           `json:"name"`
	UID         string           `json:"uid"`
}

type collectionJSON struct {
	MaxTTL uint32 `json:"maxTTL,omitempty"`
	Name   string `json:"name"`
	UID    string `json:"uid"`
}

func firstManifest() Manifest {
	return Manifest{Scopes: []Scope{{Name: defaultName, Collections: []Collection{{Name: defaultName}}}}}
}

func hexText(n uint64) string { return strconv.FormatUint(n, 16) }

func (m *Manifest) json() []byte {
	d := manifestJSON{UID: hexText(m.UID), Scopes: []scopeJSON{}}
	for _, s := range m.Scopes {
		j := scopeJSON{Name: s.Name, UID: hexText(uint64(s.ID)), Collections: []collectionJSON{}}
		for _, c := range s.Collections {
			j.Collections = append(j.Collections, collectionJSON{MaxTTL: c.MaxTTL, Name: c.Name, UID: hexText(uint64(c.ID))})
		}
		d.Scopes = append(d.Scopes, j)
	}
	return mustJSON(d)
}

// parseManifest reads a manifest and checks it as servers do.
func parseManifest(text []byte) (Manifest, error) {
	var j manifestJSON
	if err := json.Unmarshal(text, &j); err != nil || j.Scopes == nil {
		return Manifest{}, ErrManifest
	}
	uid, err := strconv.ParseUint(j.UID, 16, 64)
	if err != nil {
		return Manifest{}, ErrManifest
	}
	m := Manifest{UID: uid}
	ids := make(map[string]bool)
	for _, s := range j.Scopes {
		id, err := strconv.ParseUint(s.UID, 16, 32)
		if err != nil || ids["s"+s.UID] || s.Name == "" {
			return Manifest{}, ErrManifest
		}
		ids["s"+s.UID] = true
		scope := Scope{Name: s.Name, ID: uint32(id), Collections: []Collection{}}
		for _, c := range s.Collections {
			id, err := strconv.ParseUint(c.UID, 16, 32)
			if err != nil || ids["c"+c.UID] || c.Name == "" {
				return Manifest{}, ErrManifest
			}
			ids["c"+c.UID] = true
			scope.Collections = append(scope.Collections, Collection{Name: c.Name, ID: uint32(id), MaxTTL: c.MaxTTL})
		}
		m.Scopes = append(m.Scopes, scope)
	}
	return m, nil
}

func (m *Manifest) clone() Manifest {
	out := Manifest{UID: m.UID, Scopes: slices.Clone(m.Scopes)}
	for i := range out.Scopes {
		out.Scopes[i].Collections = slices.Clone(out.Scopes[i].Collections)
	}
	return out
}

func (m *Manifest) scope(name string) *Scope {
	for i := range m.Scopes {
		if m.Scopes[i].Name == name {
			return &m.Scopes[i]
		}
	}
	return nil
}

func (m *Manifest) collection(id uint32) (scope, collection int) {
	for i := range m.Scopes {
		for j := range m.Scopes[i].Collections {
			if m.Scopes[i].Collections[j].ID == id {
				return i, j
			}
		}
	}
	return -1, -1
}

// collections is what one copy of a vbucket knows. nil stands for what a fresh
// copy knows: the default collection.
type collections struct {
	uid    uint64
	scopes map[uint32]bool
	known  map[uint32]*collState
}

type collState struct {
	scope  uint32
	maxTTL uint32
	high   uint64 // highest seqno, its create event included
}

func freshCollections() *collections {
	return &collections{scopes: map[uint32]bool{0: true}, known: map[uint32]*collState{0: {}}}
}

// knows reports that the copy has the collection.
func (v *vcopy) knows(coll uint32) bool {
	if v.colls == nil {
		return coll == 0
	}
	return v.colls.known[coll] != nil
}

func (v *vcopy) manifestUID() uint64 {
	if v.colls == nil {
		return 0
	}
	return v.colls.uid
}

// collHigh is the high seqno of a collection; ok is false where the copy does
// not have it.
func (v *vcopy) collHigh(coll uint32) (uint64, bool) {
	if coll == 0 {
		return v.defHigh, v.knows(0)
	}
	if !v.knows(coll) {
		return 0, coll == 0
	}
	return v.colls.known[coll].high, true
}

// systemEvent is a change of the collections as a vbucket's history has it.
type systemEvent struct {
	kind    uint32
	version uint8
	uid     uint64 // of the manifest
	scope   uint32
	coll    uint32
	maxTTL  uint32
	name    string
}

func (e *systemEvent) ofCollection() bool {
	return e.kind == eventCreateCollection || e.kind == eventDropCollection
}

// message is the event as DCP sends it.
func (e *systemEvent) message(seqno uint64) mcbp.DcpMessage {
	v := binary.BigEndian.AppendUint64(nil, e.uid)
	v = binary.BigEndian.AppendUint32(v, e.scope)
	if e.ofCollection() {
		v = binary.BigEndian.AppendUint32(v, e.coll)
	}
	if e.version == 1 {
		v = binary.BigEndian.AppendUint32(v, e.maxTTL)
	}
	return mcbp.DcpMessage{
		Opcode: mcbp.OpDcpSystemEvent, Seqno: seqno, Flags: e.kind, Version: e.version, Key: []byte(e.name), Value: v,
	}
}

// parseEvent decodes a pushed system event.
func parseEvent(m *mcbp.DcpMessage) (*systemEvent, bool) {
	e := &systemEvent{kind: m.Flags, version: m.Version, name: string(m.Key)}
	v := m.Value
	want := 12
	if e.ofCollection() {
		want = 16
	}
	if e.kind == eventCreateCollection && e.version == 1 {
		want = 20
	}
	if len(v) < want {
		return nil, false
	}
	e.uid, e.scope = binary.BigEndian.Uint64(v), binary.BigEndian.Uint32(v[8:])
	if want > 12 {
		e.coll = binary.BigEndian.Uint32(v[12:])
	}
	if want > 16 {
		e.maxTTL = binary.BigEndian.Uint32(v[16:])
	}
	return e, true
}

// event makes a change part of a copy's history. The vbucket's lock is held.
func (v *vcopy) event(e *systemEvent, seqno uint64) *item {
	if v.colls == nil {
		v.colls = freshCollections()
	}
	it := &item{event: e, seqno: seqno, at: time.Now().UnixNano()}
	v.put(it)
	v.colls.uid = e.uid
	switch e.kind {
	case eventCreateScope:
		v.colls.scopes[e.scope] = true
	case eventDropScope:
		delete(v.colls.scopes, e.scope)
	case eventCreateCollection:
		v.colls.known[e.coll] = &collState{scope: e.scope, maxTTL: e.maxTTL, high: it.seqno}
		if e.coll == 0 {
			v.defHigh = it.seqno
		}
	case eventDropCollection:
		delete(v.colls.known, e.coll)
	}
	if e.kind == eventDropScope || e.kind == eventDropCollection {
		v.purge(e, it)
	}
	return it
}

// purge takes from the history what a drop makes meaningless: the items and the
// create event of the collection or scope.
func (v *vcopy) purge(drop *systemEvent, keep *item) {
	for i, it := range v.log {
		if it == nil || it == keep {
			continue
		}
		var gone bool
		switch {
		case it.event == nil:
			gone = drop.ofCollection() && it.coll == drop.coll
		case it.event.ofCollection():
			gone = drop.ofCollection() && it.event.kind == eventCreateCollection && it.event.coll == drop.coll
		default:
			gone = !drop.ofCollection() && it.event.kind == eventCreateScope && it.event.scope == drop.scope
		}
		if !gone {
			continue
		}
		if it.event == nil {
			if !it.deleted {
				v.live--
				v.memory -= it.size()
			}
			if it.coll == 0 {
				delete(v.index, it.key)
			} else {
				delete(v.named, collKey{it.coll, it.key})
			}
		}
		v.log[i] = nil
		v.holes++
	}
}

// Manifest returns the bucket's scopes and collections.
func (b *Bucket) Manifest() Manifest { return b.manifest.Load().clone() }

func (b *Bucket) manifestUID() uint64 { return b.manifest.Load().UID }

func (b *Bucket) knows(coll uint32) bool {
	i, _ := b.manifest.Load().collection(coll)
	return i >= 0
}

// SetManifest makes a manifest the bucket's; all active copies and their replicas
// get the difference as system events.
func (b *Bucket) SetManifest(m Manifest) error {
	if !b.c.rel.hasCollections() || b.memcached() {
		return fmt.Errorf("bucket %s: %w", b.cfg.Name, ErrManifest)
	}
	b.collMu.Lock()
	defer b.collMu.Unlock()
	return b.setManifest(m)
}

func (b *Bucket) setManifest(m Manifest) error {
	for _, s := range m.Scopes {
		for _, old := range b.manifest.Load().Scopes {
			if old.ID == s.ID && old.Name != s.Name {
				return fmt.Errorf("scope %x is %s: %w", s.ID, old.Name, ErrManifest)
			}
		}
	}
	next := m.clone()
	b.manifest.Store(&next)
	for vb, v := range b.vbs {
		v.mu.Lock()
		for _, nb := range v.chain {
			if nb != nil && nb.copies[vb].state == mcbp.VBActive {
				nb.learn(v, uint16(vb))
			}
		}
		v.mu.Unlock()
	}
	return nil
}

// learn brings an active copy, and its replicas, to the bucket's manifest. The
// vbucket's lock is held.
func (nb *nodeBucket) learn(m *vbucket, vb uint16) {
	v := &nb.copies[vb]
	changes := v.difference(nb.b.manifest.Load())
	for _, e := range changes {
		it := v.event(e, 0)
		if len(m.chain) == 0 || m.chain[0] != nb {
			continue
		}
		for _, r := range m.chain[1:] {
			if r != nil && r != nb && r.copies[vb].state == mcbp.VBReplica {
				r.copies[vb].ready = true
				r.copies[vb].event(e, it.seqno)
			}
		}
	}
}

// difference is the changes that lead from what a copy knows to a manifest, in
// the order of servers: scopes are created, collections dropped and created, and
// scopes dropped. Only the last one carries the manifest's own uid.
func (v *vcopy) difference(m *Manifest) []*systemEvent {
	old := v.colls
	if old == nil {
		old = freshCollections()
	}
	if old.uid >= m.UID && m.UID != 0 {
		return nil
	}
	var out []*systemEvent
	scopes := slices.Clone(m.Scopes)
	slices.SortFunc(scopes, func(a, b Scope) int { return strings.Compare(a.Name, b.Name) })
	have := map[uint32]bool{}
	for _, s := range scopes {
		have[s.ID] = true
		if !old.scopes[s.ID] {
			out = append(out, &systemEvent{kind: eventCreateScope, scope: s.ID, name: s.Name})
		}
	}
	var dropped []uint32
	for id := range old.known {
		if i, _ := m.collection(id); i < 0 {
			dropped = append(dropped, id)
		}
	}
	slices.Sort(dropped)
	for _, id := range dropped {
		out = append(out, &systemEvent{kind: eventDropCollection, scope: old.known[id].scope, coll: id})
	}
	for _, s := range m.Scopes {
		for _, c := range s.Collections {
			if old.known[c.ID] == nil {
				e := &systemEvent{kind: eventCreateCollection, scope: s.ID, coll: c.ID, name: c.Name, maxTTL: c.MaxTTL}
				if c.MaxTTL > 0 {
					e.version = 1
				}
				out = append(out, e)
			}
		}
	}
	dropped = dropped[:0]
	for id := range old.scopes {
		if !have[id] {
			dropped = append(dropped, id)
		}
	}
	slices.Sort(dropped)
	for _, id := range dropped {
		out = append(out, &systemEvent{kind: eventDropScope, scope: id})
	}
	for i, e := range out {
		e.uid = old.uid
		if i == len(out)-1 {
			e.uid = m.UID
		}
	}
	return out
}

// CreateScope adds a scope to the bucket.
func (b *Bucket) CreateScope(name string) (id uint32, err error) {
	err = b.change(func(m *Manifest) error {
		if m.scope(name) != nil || name == "" {
			return fmt.Errorf("scope %q: %w", name, ErrManifest)
		}
		id = b.newID()
		m.Scopes = append(m.Scopes, Scope{Name: name, ID: id, Collections: []Collection{}})
		return nil
	})
	return id, err
}

// CreateCollection adds a collection to a scope.
func (b *Bucket) CreateCollection(scope, name string, maxTTL uint32) (id uint32, err error) {
	err = b.change(func(m *Manifest) error {
		s := m.scope(scope)
		if s == nil {
			return fmt.Errorf("scope %q: %w", scope, ErrNoScope)
		}
		if name == "" || slices.ContainsFunc(s.Collections, func(c Collection) bool { return c.Name == name }) {
			return fmt.Errorf("collection %q: %w", name, ErrManifest)
		}
		id = b.newID()
		s.Collections = append(s.Collections, Collection{Name: name, ID: id, MaxTTL: maxTTL})
		return nil
	})
	return id, err
}

// DropCollection removes a collection and what is in it.
func (b *Bucket) DropCollection(scope, name string) error {
	return b.change(func(m *Manifest) error {
		s := m.scope(scope)
		if s == nil {
			return fmt.Errorf("scope %q: %w", scope, ErrNoScope)
		}
		n := len(s.Collections)
		s.Collections = slices.DeleteFunc(s.Collections, func(c Collection) bool { return c.Name == name })
		if len(s.Collections) == n {
			return fmt.Errorf("collection %q: %w", name, ErrNoCollection)
		}
		return nil
	})
}

// DropScope removes a scope with its collections.
func (b *Bucket) DropScope(name string) error {
	return b.change(func(m *Manifest) error {
		n := len(m.Scopes)
		m.Scopes = slices.DeleteFunc(m.Scopes, func(s Scope) bool { return s.Name == name && s.ID != 0 })
		if len(m.Scopes) == n {
			return fmt.Errorf("scope %q: %w", name, ErrNoScope)
		}
		return nil
	})
}

func (b *Bucket) change(f func(m *Manifest) error) error {
	if !b.c.rel.hasCollections() || b.memcached() {
		return fmt.Errorf("bucket %s: %w", b.cfg.Name, ErrManifest)
	}
	b.collMu.Lock()
	m := b.Manifest()
	err := f(&m)
	if err == nil {
		m.UID++
		err = b.setManifest(m)
	}
	b.collMu.Unlock()
	if err == nil {
		b.c.mu.Lock()
		b.c.touch() // the terse document names the manifest
		b.c.mu.Unlock()
	}
	return err
}

// newID is the next id of a scope or collection. collMu is held.
func (b *Bucket) newID() uint32 {
	b.lastID = max(b.lastID, firstID-1)
	for _, s := range b.manifest.Load().Scopes {
		b.lastID = max(b.lastID, s.ID)
		for _, c := range s.Collections {
			b.lastID = max(b.lastID, c.ID)
		}
	}
	b.lastID++
	return b.lastID
}

// streamFilter says what a stream sends. nil is a stream of a server or a client
// without collections on a server that has none.
type streamFilter struct {
	old     bool // the client did not negotiate collections: the default one only
	all     bool
	scope   uint32
	byScope bool
	colls   []uint32
}

func (s *streamFilter) legacy() bool   { return s != nil && s.old }
func (s *streamFilter) prefixed() bool { return s != nil && !s.old }
func (s *streamFilter) advances() bool { return s != nil && !s.old }

func (s *streamFilter) wants(it *item) bool {
	switch {
	case s == nil, s.all:
		return true
	case s.old:
		return it.event == nil && it.coll == 0
	case s.byScope:
		if it.event != nil {
			return it.event.scope == s.scope
		}
		return slices.Contains(s.colls, it.coll)
	case it.event != nil:
		return it.event.ofCollection() && slices.Contains(s.colls, it.event.coll)
	}
	return slices.Contains(s.colls, it.coll)
}

// emptied takes note of an event and reports that nothing is left to stream.
func (s *streamFilter) emptied(it *item) bool {
	e := it.event
	switch {
	case s == nil, s.all:
		return false
	case s.old:
		return e.kind == eventDropCollection && e.coll == 0
	case s.byScope:
		if e.scope == s.scope && e.kind == eventCreateCollection {
			s.colls = append(s.colls, e.coll)
		}
		return e.kind == eventDropScope && e.scope == s.scope
	case e.kind == eventDropCollection:
		s.colls = slices.DeleteFunc(s.colls, func(c uint32) bool { return c == e.coll })
		return len(s.colls) == 0
	}
	return false
}

// endStatus is what a stream ends with when its collections are gone.
func (s *streamFilter) endStatus() uint32 {
	if s.old {
		return endOK
	}
	return endFilterEmpty
}

// refusal is an answer with a body.
type refusal struct {
	status mcbp.Status
	body   []byte
}

func unknownCollection(status mcbp.Status, uid uint64) *refusal {
	return &refusal{status, fmt.Appendf(nil, `{"error":{"context":"Unknown scope or collection in operation"},"manifest_uid":"%x"}`, uid)}
}

// streamFilter reads the filter of a STREAM_REQ. The vbucket's lock is held.
func (c *conn) streamFilter(v *vcopy, f *mcbp.Frame) (*streamFilter, *refusal) {
	text := f.Value()
	if !c.n.c.rel.hasCollections() && !c.has(mcbp.FeatureCollections) {
		if len(text) > 0 {
			return nil, &refusal{mcbp.StatusInvalid, nil}
		}
		return nil, nil
	}
	if !c.has(mcbp.FeatureCollections) {
		if len(text) > 0 {
			return nil, &refusal{mcbp.StatusInvalid, contextBody("Request must not include value")}
		}
		if !v.knows(0) {
			return nil, unknownCollection(mcbp.StatusUnknownCollection, v.manifestUID())
		}
		return &streamFilter{old: true}, c.mayStream(nil, nil)
	}
	if len(text) == 0 {
		return &streamFilter{all: true}, c.mayStream(nil, nil)
	}
	var j struct {
		Collections *[]string `json:"collections"`
		Scope       *string   `json:"scope"`
		UID         *string   `json:"uid"`
		SID         *int      `json:"sid"`
	}
	bad := &refusal{mcbp.StatusInvalid, nil}
	if json.Unmarshal(text, &j) != nil {
		return nil, bad
	}
	if j.SID != nil {
		return nil, &refusal{statusNoSID, nil}
	}
	switch {
	case j.Collections != nil && j.Scope != nil:
		return nil, bad
	case j.Collections != nil:
		out := &streamFilter{}
		for _, text := range *j.Collections {
			id, err := strconv.ParseUint(text, 16, 32)
			if err != nil {
				return nil, bad
			}
			if !v.knows(uint32(id)) {
				return nil, unknownCollection(mcbp.StatusUnknownCollection, v.manifestUID())
			}
			out.colls = append(out.colls, uint32(id))
		}
		return out, c.mayStream(out.colls, nil)
	case j.Scope != nil:
		id, err := strconv.ParseUint(*j.Scope, 16, 32)
		if err != nil {
			return nil, bad
		}
		out := &streamFilter{byScope: true, scope: uint32(id)}
		if v.colls == nil && id != 0 || v.colls != nil && !v.colls.scopes[uint32(id)] {
			return nil, unknownCollection(mcbp.StatusUnknownScope, v.manifestUID())
		}
		if v.colls == nil {
			out.colls = []uint32{0}
		} else {
			for cid, st := range v.colls.known {
				if st.scope == out.scope {
					out.colls = append(out.colls, cid)
				}
			}
		}
		return out, c.mayStream(nil, &out.scope)
	case j.UID != nil:
		return &streamFilter{all: true}, c.mayStream(nil, nil)
	}
	return nil, bad
}

// key splits the collection's id from a request's key; false means that the
// request was answered.
func (c *conn) key(f *mcbp.Frame) (coll uint32, key []byte, ok bool) {
	key = f.Key()
	if !c.has(mcbp.FeatureCollections) {
		if len(key) == 0 || len(key) > maxKeyLen {
			text := "Key length exceeds 250"
			if len(key) == 0 {
				text = "Request must include key"
			}
			c.refuse(f, mcbp.StatusInvalid, text)
			return 0, nil, false
		}
		return 0, key, true
	}
	text := ""
	coll, rest, n := leb128(key)
	switch {
	case len(key) == 0:
		text = "Request must include key"
	case len(key) < 2:
		text = "Key length must be >= 2"
	case len(key) > maxKeyLen+1:
		text = "Key length exceeds 251"
	case n == 0:
		text = "No stop-byte found"
	case n > 1 && key[n-1] == 0:
		text = "Key contains non-canonical leb128"
	case coll > 0 && coll < firstID:
		text = fmt.Sprintf("Invalid collection-id:%x", coll)
	case len(rest) == 0:
		text = "Key length must be >= 2"
	case coll != 0 && len(rest) > maxNamedKey:
		text = "Logical key exceeds 246"
	}
	if text != "" {
		c.refuse(f, mcbp.StatusInvalid, text)
		return 0, nil, false
	}
	return coll, rest, true
}

// leb128 decodes a number; n is its length, 0 where it has no end.
func leb128(b []byte) (v uint32, rest []byte, n int) {
	var w uint64
	for i, x := range b {
		if i == 5 {
			break
		}
		w |= uint64(x&0x7f) << (7 * i)
		if x&0x80 == 0 {
			return uint32(w), b[i+1:], i + 1
		}
	}
	return 0, nil, 0
}

// collectionRequest serves the requests about the manifest.
func (c *conn) collectionRequest(nb *nodeBucket, f *mcbp.Frame) {
	b := nb.b
	m := b.Manifest()
	switch f.Opcode {
	case mcbp.OpGetManifest:
		c.replyTyped(f, mcbp.StatusOK, uint8(mcbp.DatatypeJSON), m.json())
	case mcbp.OpSetManifest:
		next, err := parseManifest(f.Value())
		if err == nil && next.UID == 0 && m.UID != 0 {
			err = ErrManifest
		}
		if err != nil {
			c.refuse(f, mcbp.StatusInvalid, fmt.Sprintf("Collections::Manager::update manifest json invalid:%s: invalid arguments", f.Value()))
			return
		}
		for _, s := range next.Scopes {
			for _, old := range m.Scopes {
				if s.ID == old.ID && s.Name != old.Name {
					c.refuse(f, statusRename, fmt.Sprintf("invalid name change detected on scope sid:0x%x, name:%s, new-name:%s: cannot_apply_collections_manifest", s.ID, old.Name, s.Name))
					return
				}
			}
		}
		if err := b.SetManifest(next); err != nil {
			c.refuse(f, mcbp.StatusInvalid, err.Error())
			return
		}
		c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
	case mcbp.OpGetCollectionID, mcbp.OpGetScopeID:
		c.resolve(f, &m)
	}
}

func (c *conn) resolve(f *mcbp.Frame, m *Manifest) {
	path := string(f.Value())
	if path == "" {
		path = string(f.Key())
	}
	scope, coll, found := strings.Cut(path, ".")
	if f.Opcode == mcbp.OpGetCollectionID && (!found || strings.Contains(coll, ".")) {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return
	}
	if scope == "" {
		scope = defaultName
	}
	s := m.scope(scope)
	if s == nil {
		c.refuseWith(f, unknownCollection(mcbp.StatusUnknownScope, m.UID))
		return
	}
	x := binary.BigEndian.AppendUint64(nil, m.UID)
	if f.Opcode == mcbp.OpGetScopeID {
		c.reply(f, mcbp.StatusOK, 0, binary.BigEndian.AppendUint32(x, s.ID), nil, nil)
		return
	}
	if coll == "" {
		coll = defaultName
	}
	for _, col := range s.Collections {
		if col.Name == coll {
			c.reply(f, mcbp.StatusOK, 0, binary.BigEndian.AppendUint32(x, col.ID), nil, nil)
			return
		}
	}
	c.refuseWith(f, unknownCollection(mcbp.StatusUnknownCollection, m.UID))
}

func (c *conn) unknownCollection(f *mcbp.Frame, uid uint64) {
	c.refuseWith(f, unknownCollection(mcbp.StatusUnknownCollection, uid))
}

// contextBody is the JSON text that servers from 5.0 on explain a refusal with.
func contextBody(text string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(text) != nil {
		return nil
	}
	return fmt.Appendf(nil, `{"error":{"context":%s}}`, bytes.TrimSpace(b.Bytes()))
}

// refuse answers a refusal, with a text where the server is one that gives it.
func (c *conn) refuse(f *mcbp.Frame, status mcbp.Status, text string) {
	if text == "" || c.n.c.rel < rel65 {
		c.reply(f, status, 0, nil, nil, nil)
		return
	}
	c.replyTyped(f, status, uint8(mcbp.DatatypeJSON), contextBody(text))
}

func (c *conn) refuseWith(f *mcbp.Frame, r *refusal) {
	datatype := uint8(0)
	if len(r.body) > 0 {
		datatype = uint8(mcbp.DatatypeJSON)
	}
	c.replyTyped(f, r.status, datatype, r.body)
}
