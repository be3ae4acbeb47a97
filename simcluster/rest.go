package simcluster

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cbpump/cbpump/mcbp"
)

const formType = "application/x-www-form-urlencoded"

// request is one REST request on its way through the handlers.
type request struct {
	n    *Node
	w    http.ResponseWriter
	r    *http.Request
	form url.Values
	// admin and bucket say who asks: the administrator, or a bucket by its own password.
	admin  bool
	bucket string
	user   *account // from 5.0 on
}

// restHandler serves the REST port of one node.
func (n *Node) restHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fault := n.strikeREST(r)
		if fault != nil && !fault.AfterEffect {
			n.failREST(w, r, fault)
			return
		}
		rec := &recorder{ResponseWriter: w}
		if fault != nil {
			rec.ResponseWriter = nowhere{http.Header{}}
		}
		q := &request{n: n, w: rec, r: r}
		q.serve()
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			n.c.record(n, r, q.form, rec.status)
		}
		if fault != nil {
			n.failREST(w, r, fault)
		}
	})
}

// recorder remembers the status that a handler answered.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// nowhere takes an answer that the client shall not see.
type nowhere struct{ h http.Header }

func (n nowhere) Header() http.Header         { return n.h }
func (n nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n nowhere) WriteHeader(int)             {}

func (c *Cluster) record(n *Node, r *http.Request, form url.Values, status int) {
	kept := url.Values{}
	for k, v := range form {
		if k != "password" {
			kept[k] = v
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.journal = append(c.journal, Request{Node: n.REST(), Method: r.Method, Path: r.URL.Path, Form: kept.Encode(), Status: status})
}

func (n *Node) strikeREST(r *http.Request) *RESTFault {
	fs := &n.faults
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, a := range fs.rest {
		if a.Method != "" && a.Method != r.Method || !strings.HasPrefix(r.URL.Path, a.Path) {
			continue
		}
		a.seen++
		if a.seen <= a.After || a.Times > 0 && a.struck >= a.Times {
			continue
		}
		a.struck++
		f := a.RESTFault
		return &f
	}
	return nil
}

func (n *Node) failREST(w http.ResponseWriter, r *http.Request, f *RESTFault) {
	if f.Stall {
		// The request's own context does not end while its body is unread.
		io.Copy(io.Discard, r.Body)
		select {
		case <-n.done:
		case <-r.Context().Done():
		}
	}
	if f.Stall || f.Close {
		if nc, _, err := http.NewResponseController(w).Hijack(); err == nil {
			nc.Close()
		}
		return
	}
	status, contentType := f.Status, f.ContentType
	if status == 0 {
		status = http.StatusInternalServerError
	}
	if contentType == "" {
		contentType = "text/html"
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	io.WriteString(w, f.Body)
}

func (q *request) text(status int, body string) {
	q.w.Header().Set("Content-Type", "text/plain")
	q.w.WriteHeader(status)
	io.WriteString(q.w, body)
}

func (q *request) json(status int, v any) {
	q.w.Header().Set("Content-Type", "application/json")
	q.w.WriteHeader(status)
	q.w.Write(mustJSON(v))
}

func (q *request) notFound() { q.text(http.StatusNotFound, "Requested resource not found.\r\n") }

func (q *request) unauthorized() {
	q.w.Header().Set("WWW-Authenticate", `Basic realm="Couchbase Server Admin / REST"`)
	q.text(http.StatusUnauthorized, "")
}

// login finds out who asks; false means wrong credentials, and is answered.
func (q *request) login() bool {
	user, password, ok := q.r.BasicAuth()
	if !ok {
		if a := q.n.c.certUser(q.r.TLS); a != nil {
			q.user, q.admin = a, a.admin
		}
		return true
	}
	if q.n.c.rel.hasUsers() {
		a := q.n.c.account(user)
		if a == nil || a.password != password {
			q.unauthorized()
			return false
		}
		q.user, q.admin = a, a.admin
		return true
	}
	cfg := &q.n.c.cfg
	if user == cfg.Username && password == cfg.Password {
		q.admin = true
		return true
	}
	if b := q.n.c.Bucket(user); b != nil && b.cfg.Password == password {
		q.bucket = user
		return true
	}
	q.unauthorized()
	return false
}

func (q *request) serve() {
	q.w.Header().Set("Server", "Couchbase Server")
	if !q.login() {
		return
	}
	path := strings.TrimSuffix(q.r.URL.Path, "/")
	if path == "/pools" {
		if q.only(http.MethodGet) {
			q.json(http.StatusOK, q.n.c.poolsDoc(q.n, q.admin))
		}
		return
	}
	if !q.n.isMember() {
		q.text(http.StatusNotFound, `"unknown pool"`)
		return
	}
	if rest, ok := strings.CutPrefix(path, "/pools/default"); ok {
		q.pool(strings.Split(strings.TrimPrefix(rest, "/"), "/"))
		return
	}
	if !q.adminOnly() {
		return
	}
	switch path {
	case "/controller/failOver":
		q.failOver()
	case "/controller/addNode":
		q.addNode()
	case "/controller/rebalance":
		if q.post() {
			q.n.c.Rebalance()
			q.w.WriteHeader(http.StatusOK)
		}
	default:
		q.notFound()
	}
}

func (n *Node) isMember() bool {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.membership != memberNone
}

func (q *request) adminOnly() bool { return q.permitted("cluster.admin!all") }

// permitted lets administrators in. Who is known and may not gets 403 with the
// permission that is needed, from 5.0 on.
func (q *request) permitted(permission string) bool {
	switch {
	case q.admin:
		return true
	case q.user != nil:
		q.json(http.StatusForbidden, struct {
			Message     string   `json:"message"`
			Permissions []string `json:"permissions"`
		}{"Forbidden. User needs the following permissions", []string{permission}})
	default:
		q.unauthorized()
	}
	return false
}

// reads lets those in who may read the cluster's documents.
func (q *request) reads() bool {
	return q.bucket != "" || q.user != nil || q.adminOnly()
}

// only answers other methods than the one given.
func (q *request) only(method string) bool {
	if q.r.Method == method || method == http.MethodGet && q.r.Method == http.MethodHead {
		return true
	}
	q.w.Header().Set("Allow", method)
	q.text(http.StatusMethodNotAllowed, "Method Not Allowed\r\n")
	return false
}

// post accepts a POST with a form, or with no body at all.
func (q *request) post() bool {
	if !q.only(http.MethodPost) {
		return false
	}
	body, err := io.ReadAll(io.LimitReader(q.r.Body, 1<<20))
	if err != nil {
		q.text(http.StatusBadRequest, "the body could not be read\r\n")
		return false
	}
	if len(body) > 0 {
		if t, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type")); err != nil || t != formType {
			q.text(http.StatusUnsupportedMediaType, "Content-Type must be "+formType+"\r\n")
			return false
		}
	}
	if q.form, err = url.ParseQuery(string(bytes.TrimSpace(body))); err != nil {
		q.text(http.StatusBadRequest, "the form could not be read\r\n")
		return false
	}
	return true
}

// pool serves what is below /pools/default.
func (q *request) pool(path []string) {
	c := q.n.c
	switch {
	case path[0] == "" && len(path) == 1:
		if q.reads() && q.only(http.MethodGet) {
			q.json(http.StatusOK, c.poolDoc(q.n))
		}
	case path[0] == "buckets" && len(path) == 1:
		if (q.user != nil || q.adminOnly()) && q.only(http.MethodGet) {
			q.json(http.StatusOK, c.bucketsDoc(q.n, q.user))
		}
	case path[0] == "nodeServices" && len(path) == 1 && c.family >= 3:
		if q.reads() && q.only(http.MethodGet) {
			q.json(http.StatusOK, c.nodeServices(q.n))
		}
	case path[0] == "tasks" && len(path) == 1:
		if (q.user != nil || q.adminOnly()) && q.only(http.MethodGet) {
			q.json(http.StatusOK, c.tasksDoc())
		}
	case len(path) >= 2 && slices.Contains([]string{"buckets", "b", "bucketsStreaming", "bs"}, path[0]):
		if q.user != nil && !q.user.mayEnter(path[1]) {
			q.permitted("cluster.bucket[" + path[1] + "].settings!read")
			return
		}
		if q.user == nil && q.bucket != path[1] && !q.adminOnly() {
			return
		}
		b := c.Bucket(path[1])
		if b == nil {
			q.notFound()
			return
		}
		q.bucketPath(b, path[0], path[2:])
	default:
		if q.adminOnly() {
			q.notFound()
		}
	}
}

// proposal are the recovery proposal's endpoints of a bucket.
var proposal = []string{"vbucketsMissing", "replaceNode", "changeVbucketStates", "updateVbucketMap"}

func (q *request) bucketPath(b *Bucket, kind string, rest []string) {
	full := func() []byte {
		b.c.mu.Lock()
		defer b.c.mu.Unlock()
		return mustJSON(b.doc(q.n))
	}
	terse := func() []byte { return b.terseFor(q.n) }
	switch {
	case len(rest) == 1 && kind == "buckets" && !b.c.cfg.WithoutRecoveryAPI && slices.Contains(proposal, rest[0]):
		if q.adminOnly() {
			q.recovery(b, rest[0])
		}
	case kind == "buckets" && q.controller(b, rest):
	case kind == "buckets" && b.c.rel.hasCollections() && q.scopes(b, rest):
	case len(rest) > 0:
		q.notFound()
	case !q.only(http.MethodGet):
	case kind == "buckets":
		q.raw(full())
	case kind == "b":
		q.raw(terse())
	case kind == "bucketsStreaming":
		q.stream(b.c, full)
	default:
		q.stream(b.c, terse)
	}
}

func (q *request) raw(doc []byte) {
	q.w.Header().Set("Content-Type", "application/json")
	q.w.WriteHeader(http.StatusOK)
	q.w.Write(doc)
}

// stream sends a document now and at every change of the topology, with four
// newlines behind each, until the client or the node goes away.
func (q *request) stream(c *Cluster, doc func() []byte) {
	q.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	flush := http.NewResponseController(q.w)
	var last []byte
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if d := doc(); !bytes.Equal(d, last) {
			last = d
			if _, err := q.w.Write(append(bytes.Clone(d), "\n\n\n\n"...)); err != nil {
				return
			}
			if flush.Flush() != nil {
				return
			}
		}
		select {
		case <-changed:
		case <-q.r.Context().Done():
			return
		case <-q.n.done:
			return
		}
	}
}

// failOver is POST /controller/failOver, form otpNode.
func (q *request) failOver() {
	if !q.post() {
		return
	}
	if _, uuid := q.n.c.RecoveryRunning(); uuid != "" {
		q.text(http.StatusServiceUnavailable, "Cluster is in recovery mode.")
		return
	}
	otp := q.form.Get("otpNode")
	nodes := q.n.c.Nodes()
	i := slices.IndexFunc(nodes, func(n *Node) bool { return n.OTP() == otp })
	if i < 0 {
		q.text(http.StatusBadRequest, "Unknown server given.\r\n")
		return
	}
	if err := q.n.c.Failover(nodes[i]); err != nil {
		q.text(http.StatusBadRequest, err.Error()+"\r\n")
		return
	}
	q.w.WriteHeader(http.StatusOK)
}

// addNode is POST /controller/addNode, form hostname, user, password.
func (q *request) addNode() {
	if !q.post() {
		return
	}
	c := q.n.c
	addr := strings.TrimPrefix(q.form.Get("hostname"), "http://")
	c.mu.Lock()
	n := c.nodeAt(withPort(addr))
	c.mu.Unlock()
	if n == nil || n.Dead() {
		q.json(http.StatusBadRequest, []string{"Failed to reach the node " + addr + "."})
		return
	}
	if err := c.AddNode(n); err != nil {
		q.json(http.StatusBadRequest, []string{err.Error()})
		return
	}
	q.json(http.StatusOK, map[string]string{"otpNode": n.OTP()})
}

// withPort adds the default REST port to an address without one.
func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return bracketed(strings.Trim(addr, "[]")) + ":8091"
}

// recovery serves the proposal's endpoints of one bucket.
func (q *request) recovery(b *Bucket, what string) {
	switch what {
	case "vbucketsMissing":
		if q.only(http.MethodGet) {
			q.json(http.StatusOK, b.Missing())
		}
	case "replaceNode":
		if q.post() {
			q.accepted(q.n.c.replaceNode(q.form.Get("add"), q.form.Get("remove")))
		}
	case "changeVbucketStates":
		if q.post() {
			q.accepted(b.changeStates(q.form["vbucket"], q.form.Get("state")))
		}
	case "updateVbucketMap":
		if q.post() {
			q.accepted(b.updateMap())
		}
	default:
		q.notFound()
	}
}

func (q *request) accepted(status int, why string) {
	if why != "" {
		why += "\r\n"
	}
	q.text(status, why)
}

// replaceNode puts the node at add in the place of the failed over one at remove.
func (c *Cluster) replaceNode(add, remove string) (status int, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.memberAt(withPort(remove))
	if old == nil {
		return 401, "node to remove is not found: " + remove
	}
	if old.membership != memberFailed {
		return 403, "node is still in active mode, you have to failover it first: " + remove
	}
	if c.memberAt(withPort(add)) != nil {
		return 402, "node exists already: " + add
	}
	n := c.nodeAt(withPort(add))
	if n == nil || n.Dead() {
		return 401, "node to add is not found: " + add
	}
	c.members[slices.Index(c.members, old)] = n
	n.membership, old.membership = memberActive, memberNone
	c.replaced[old] = n
	for _, name := range c.names {
		b := c.buckets[name]
		nb := b.join(n)
		if b.memcached() {
			m := b.vbs[0]
			m.mu.Lock()
			nb.setState(m, 0, mcbp.VBActive)
			m.mu.Unlock()
		}
	}
	c.touch()
	return http.StatusAccepted, ""
}

// changeStates creates missing vbuckets on their owners, or changes the state of
// those already created. All are changed or none. Nothing is copied.
func (b *Bucket) changeStates(vbs []string, state string) (status int, why string) {
	s, ok := mcbp.ParseVBState(state)
	if !ok {
		return 411, "state is not valid, it has to be active, replica, pending or dead"
	}
	if len(vbs) == 0 || b.memcached() {
		return 410, "vbucket is not found"
	}
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	owners := make(map[int]*nodeBucket)
	for _, text := range vbs {
		vb, err := strconv.Atoi(text)
		if err != nil || vb < 0 || vb >= len(b.vbs) {
			return 410, "vbucket is not found: " + text
		}
		m := b.vbs[vb]
		m.mu.Lock()
		missing, owner := m.chain[0] == nil, m.owner
		m.mu.Unlock()
		if missing && owner == nil && (s == mcbp.VBReplica || s == mcbp.VBPending) {
			owner = b.ownerOf(vb)
		}
		if owner == nil || owner.node.Dead() { // only missing ones have an owner
			return 410, "vbucket is not found: " + text
		}
		owners[vb] = owner
	}
	for vb, nb := range owners {
		m := b.vbs[vb]
		m.mu.Lock()
		m.owner = nb
		nb.setState(m, uint16(vb), s)
		m.mu.Unlock()
	}
	b.c.touch()
	return http.StatusAccepted, ""
}

// ownerOf says where a missing vbucket is to come back: on the node that
// replaced the one which lost it, or else shared out over all that are left.
// The cluster's lock is held.
func (b *Bucket) ownerOf(vb int) *nodeBucket {
	m := b.vbs[vb]
	for n := b.c.replaced[m.lost]; n != nil; n = b.c.replaced[n] {
		if i := slices.IndexFunc(b.nodes, func(nb *nodeBucket) bool { return nb.node == n }); i >= 0 {
			return b.nodes[i]
		}
	}
	var alive []*nodeBucket
	for _, nb := range b.nodes {
		if !nb.node.Dead() {
			alive = append(alive, nb)
		}
	}
	if len(alive) == 0 {
		return nil
	}
	return alive[vb%len(alive)]
}

// updateMap publishes the owners whose vbucket is active; the others stay missing.
func (b *Bucket) updateMap() (status int, why string) {
	if b.memcached() {
		return 410, "update failure: the bucket has no vbucket map"
	}
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	for _, m := range b.vbs {
		m.mu.Lock()
		dead := m.owner != nil && m.owner.node.Dead()
		m.mu.Unlock()
		if dead {
			return 410, "update failure: a node that owns recovered vbuckets does not answer"
		}
	}
	for vb, m := range b.vbs {
		m.mu.Lock()
		if m.owner != nil && m.owner.copies[vb].state == mcbp.VBActive {
			m.chain[0], m.owner, m.lost = m.owner, nil, nil
		}
		m.mu.Unlock()
	}
	b.c.touch()
	return http.StatusAccepted, ""
}

// scopes serves the REST interface of collections; ok is false where the path is
// none of it.
func (q *request) scopes(b *Bucket, path []string) (ok bool) {
	if len(path) == 0 || path[0] != "scopes" {
		return false
	}
	m := b.Manifest()
	done := func(err error) {
		switch {
		case err == nil:
			q.json(http.StatusOK, map[string]string{"uid": hexText(b.manifestUID())})
		case errors.Is(err, ErrNoScope), errors.Is(err, ErrNoCollection):
			q.json(http.StatusNotFound, map[string]string{"errors": err.Error()})
		default:
			q.json(http.StatusBadRequest, map[string]string{"errors": err.Error()})
		}
	}
	switch {
	case len(path) == 1 && q.r.Method == http.MethodGet:
		q.raw(m.json())
	case !q.permitted("cluster.collection[" + b.cfg.Name + ":.:.].collections!write"):
	case len(path) == 1:
		if q.post() {
			_, err := b.CreateScope(q.form.Get("name"))
			done(err)
		}
	case len(path) == 2 && q.r.Method == http.MethodDelete:
		done(b.DropScope(path[1]))
	case len(path) == 3 && path[2] == "collections":
		if q.post() {
			ttl, err := strconv.ParseUint(cmp.Or(q.form.Get("maxTTL"), "0"), 10, 31)
			if err == nil {
				_, err = b.CreateCollection(path[1], q.form.Get("name"), uint32(ttl))
			}
			done(err)
		}
	case len(path) == 4 && path[2] == "collections" && q.r.Method == http.MethodDelete:
		done(b.DropCollection(path[1], path[3]))
	default:
		q.notFound()
	}
	return true
}
