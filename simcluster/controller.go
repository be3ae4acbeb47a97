package simcluster

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/cbpump/cbpump/mcbp"
)

// recoveryRun is a recovery by the interface that servers really have. A cluster
// runs one at a time. The cluster's lock guards it.
type recoveryRun struct {
	b      *Bucket
	uuid   string
	owners map[uint16]*nodeBucket // of what is not committed yet
}

type recoveryDoc struct {
	UUID string         `json:"uuid,omitempty"`
	Code string         `json:"code"`
	Map  *[]recoveryRow `json:"recoveryMap,omitempty"`

	FailedNodes []string `json:"failedNodes,omitempty"`
}

type recoveryRow struct {
	Node     string   `json:"node"`
	VBuckets []uint16 `json:"vbuckets"`
}

// armedRecovery is a failure of startRecovery or commitVBucket.
type armedRecovery struct {
	call, code string
	times      int
}

// FailRecovery makes the next calls of "startRecovery" or "commitVBucket" answer a
// code, such as "failed_nodes" or "rebalance_running", and change nothing.
func (c *Cluster) FailRecovery(call, code string, times int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recoveryFaults = append(c.recoveryFaults, &armedRecovery{call, code, times})
}

// SetRebalancing says that a rebalance is under way, or that it is not.
func (c *Cluster) SetRebalancing(running bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rebalancing = running
	c.touch()
}

// ForgetRecovery is what a new master does: it knows nothing of a recovery that
// was running, and what was not committed is deleted.
func (c *Cluster) ForgetRecovery() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endRecovery()
}

// RecoveryRunning returns the bucket and the uuid of the recovery under way, or
// nothing.
func (c *Cluster) RecoveryRunning() (bucket, uuid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recovery == nil {
		return "", ""
	}
	return c.recovery.b.cfg.Name, c.recovery.uuid
}

// endRecovery deletes what was not committed; the uuid is dead. The lock is held.
func (c *Cluster) endRecovery() {
	r := c.recovery
	if r == nil {
		return
	}
	for vb, nb := range r.owners {
		m := r.b.vbs[vb]
		m.mu.Lock()
		if m.chain[0] == nil {
			nb.setState(m, vb, mcbp.VBAbsent)
		}
		m.mu.Unlock()
	}
	c.recovery = nil
	c.touch()
}

// recoveryFault takes an armed failure of a call. The lock is held.
func (c *Cluster) recoveryFault(call string) string {
	for _, a := range c.recoveryFaults {
		if a.call == call && a.times > 0 {
			a.times--
			return a.code
		}
	}
	return ""
}

// recoveryStatuses are the HTTP statuses of the codes that are not 400.
var recoveryStatuses = map[string]int{
	"ok": 200, "recovery_completed": 200,
	"not_present": 404, "bad_recovery": 404, "vbucket_not_found": 404,
	"failed_nodes": 500, "internal_error": 500,
	"rebalance_running": 503, "in_bucket_hibernation": 503,
}

func (q *request) recoveryAnswer(d recoveryDoc) {
	status := recoveryStatuses[d.Code]
	if status == 0 {
		status = http.StatusBadRequest
	}
	q.json(status, d)
}

// controller serves the recovery interface of real servers; ok is false where the
// path is none of it.
func (q *request) controller(b *Bucket, path []string) (ok bool) {
	c := q.n.c
	switch {
	case len(path) == 1 && path[0] == "recoveryStatus":
		if q.permitted("cluster.bucket["+b.cfg.Name+"].recovery!read") && q.only(http.MethodGet) {
			q.recoveryAnswer(c.recoveryStatus(b, q.r.URL.Query()))
		}
	case len(path) == 2 && path[0] == "controller" && path[1] == "startRecovery":
		if q.permitted("cluster.bucket["+b.cfg.Name+"].recovery!write") && q.post() {
			q.recoveryAnswer(c.startRecovery(b))
		}
	case len(path) == 2 && path[0] == "controller" && path[1] == "commitVBucket":
		if q.permitted("cluster.bucket["+b.cfg.Name+"].recovery!write") && q.post() {
			q.recoveryAnswer(c.commitVBucket(b, q.r.URL.Query(), q.form))
		}
	case len(path) == 2 && path[0] == "controller" && path[1] == "stopRecovery":
		if q.permitted("cluster.bucket["+b.cfg.Name+"].recovery!write") && q.post() {
			q.recoveryAnswer(c.stopRecovery(b, q.r.URL.Query()))
		}
	default:
		return false
	}
	return true
}

func (c *Cluster) startRecovery(b *Bucket) recoveryDoc {
	c.mu.Lock()
	defer c.mu.Unlock()
	if code := c.recoveryFault("startRecovery"); code != "" {
		return c.faulty(code)
	}
	if r := c.recovery; r != nil {
		if r.b == b && c.rel <= rel50 {
			return r.doc()
		}
		return recoveryDoc{Code: "recovery_running"}
	}
	if c.rebalancing {
		return recoveryDoc{Code: "rebalance_running"}
	}
	if b.memcached() {
		return recoveryDoc{Code: "not_needed"}
	}
	var missing []uint16
	load := make(map[*nodeBucket]int)
	for vb, m := range b.vbs {
		m.mu.Lock()
		if nb := m.chain[0]; nb != nil {
			load[nb]++
		} else {
			missing = append(missing, uint16(vb))
		}
		m.mu.Unlock()
	}
	if len(missing) == 0 {
		return recoveryDoc{Code: "not_needed"}
	}
	var dead []string
	for _, n := range c.members {
		if n.membership != memberFailed && n.Dead() {
			dead = append(dead, n.OTP())
		}
	}
	if len(dead) > 0 {
		return recoveryDoc{Code: "failed_nodes", FailedNodes: dead}
	}
	c.activateAdded()
	r := &recoveryRun{b: b, uuid: newUUID(), owners: make(map[uint16]*nodeBucket)}
	for _, vb := range missing {
		owner := slices.MinFunc(b.nodes, func(x, y *nodeBucket) int { return load[x] - load[y] })
		load[owner]++
		r.owners[vb] = owner
		m := b.vbs[vb]
		m.mu.Lock()
		m.owner = nil
		owner.setState(m, vb, mcbp.VBAbsent) // what an earlier try left
		owner.setState(m, vb, mcbp.VBReplica)
		m.mu.Unlock()
	}
	c.recovery = r
	c.touch()
	return r.doc()
}

// activateAdded makes nodes that were added members that serve. The lock is held.
func (c *Cluster) activateAdded() {
	for _, n := range c.members {
		if n.membership != memberAdded {
			continue
		}
		n.membership = memberActive
		for _, name := range c.names {
			nb := c.buckets[name].join(n)
			if nb.b.memcached() {
				m := nb.b.vbs[0]
				m.mu.Lock()
				nb.setState(m, 0, mcbp.VBActive)
				m.mu.Unlock()
			}
		}
	}
}

// faulty is an armed failure as an answer. The lock is held.
func (c *Cluster) faulty(code string) recoveryDoc {
	d := recoveryDoc{Code: code}
	if code == "failed_nodes" {
		d.FailedNodes = []string{c.members[len(c.members)-1].OTP()}
	}
	return d
}

func (r *recoveryRun) doc() recoveryDoc {
	by := make(map[*nodeBucket][]uint16)
	for vb, nb := range r.owners {
		by[nb] = append(by[nb], vb)
	}
	rows := []recoveryRow{}
	for _, nb := range r.b.nodes {
		if vbs := by[nb]; len(vbs) > 0 {
			slices.Sort(vbs)
			rows = append(rows, recoveryRow{Node: nb.node.OTP(), VBuckets: vbs})
		}
	}
	return recoveryDoc{UUID: r.uuid, Code: "ok", Map: &rows}
}

// running finds the recovery that a request names. The lock is held.
func (c *Cluster) running(b *Bucket, query url.Values) (*recoveryRun, string) {
	uuid := query.Get("recovery_uuid")
	switch r := c.recovery; {
	case uuid == "":
		return nil, "uuid_missing"
	case r == nil || r.b != b || r.uuid != uuid:
		return nil, "bad_recovery"
	default:
		return r, ""
	}
}

func (c *Cluster) recoveryStatus(b *Bucket, query url.Values) recoveryDoc {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, code := c.running(b, query)
	if r == nil {
		return recoveryDoc{Code: code}
	}
	return r.doc()
}

func (c *Cluster) commitVBucket(b *Bucket, query, form url.Values) recoveryDoc {
	vb, err := strconv.ParseUint(form.Get("vbucket"), 10, 16)
	c.mu.Lock()
	defer c.mu.Unlock()
	if query.Get("recovery_uuid") == "" {
		return recoveryDoc{Code: "uuid_missing"}
	}
	if err != nil {
		return recoveryDoc{Code: "bad_or_missing_vbucket"}
	}
	r, code := c.running(b, query)
	if r == nil {
		return recoveryDoc{Code: code}
	}
	owner := r.owners[uint16(vb)]
	if owner == nil {
		return recoveryDoc{Code: "vbucket_not_found"}
	}
	if code := c.recoveryFault("commitVBucket"); code != "" {
		return c.faulty(code)
	}
	if owner.node.Dead() || !slices.Contains(b.nodes, owner) {
		return recoveryDoc{Code: "failed_nodes", FailedNodes: []string{owner.node.OTP()}}
	}
	m := b.vbs[vb]
	m.mu.Lock()
	owner.setState(m, uint16(vb), mcbp.VBActive)
	m.chain[0], m.lost = owner, nil
	m.mu.Unlock()
	delete(r.owners, uint16(vb))
	c.touch()
	if len(r.owners) > 0 {
		return recoveryDoc{Code: "ok"}
	}
	c.recovery = nil
	return recoveryDoc{Code: "recovery_completed"}
}

func (c *Cluster) stopRecovery(b *Bucket, query url.Values) recoveryDoc {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, code := c.running(b, query)
	if r == nil {
		return recoveryDoc{Code: code}
	}
	c.endRecovery()
	return recoveryDoc{Code: "ok"}
}

type taskDoc struct {
	Type             string   `json:"type"`
	Status           string   `json:"status,omitempty"`
	Progress         *float64 `json:"progress,omitempty"`
	Bucket           string   `json:"bucket,omitempty"`
	UUID             string   `json:"uuid,omitempty"`
	StopURI          string   `json:"stopURI,omitempty"`
	CommitVBucketURI string   `json:"commitVbucketURI,omitempty"`
	StatusURI        string   `json:"recoveryStatusURI,omitempty"`
}

func (c *Cluster) tasksDoc() []taskDoc {
	c.mu.Lock()
	defer c.mu.Unlock()
	reb := taskDoc{Type: "rebalance", Status: "notRunning"}
	if c.rebalancing {
		half := 50.0
		reb.Status, reb.Progress = "running", &half
	}
	docs := []taskDoc{reb}
	if r := c.recovery; r != nil {
		base, query := "/pools/default/buckets/"+url.PathEscape(r.b.cfg.Name), "?recovery_uuid="+r.uuid
		docs = append(docs, taskDoc{
			Type: "recovery", Bucket: r.b.cfg.Name, UUID: r.uuid,
			StopURI: base + "/controller/stopRecovery" + query, CommitVBucketURI: base + "/controller/commitVBucket" + query,
			StatusURI: base + "/recoveryStatus" + query,
		})
	}
	return docs
}

// Rebalance removes failed over nodes and activates added ones, as a rebalance
// does at its end: every vbucket that is missing becomes an empty active one, for
// good, and missing replicas are built. What is there already stays where it is.
func (c *Cluster) Rebalance() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endRecovery()
	c.members = slices.DeleteFunc(c.members, func(n *Node) bool {
		if n.membership != memberFailed {
			return false
		}
		n.membership = memberNone
		return true
	})
	c.activateAdded()
	for _, name := range c.names {
		b := c.buckets[name]
		if b.memcached() {
			continue
		}
		load := make(map[*nodeBucket]int)
		for vb, m := range b.vbs {
			m.mu.Lock()
			b.fill(m, uint16(vb), load)
			m.mu.Unlock()
		}
	}
	c.touch()
}

// fill gives a vbucket the copies that it lacks. The vbucket's lock is held.
func (b *Bucket) fill(m *vbucket, vb uint16, load map[*nodeBucket]int) {
	for i := range m.chain {
		if m.chain[i] == nil {
			var free []*nodeBucket
			for _, nb := range b.nodes {
				if !nb.node.Dead() && !slices.Contains(m.chain, nb) {
					free = append(free, nb)
				}
			}
			if len(free) == 0 {
				return
			}
			nb := slices.MinFunc(free, func(x, y *nodeBucket) int { return load[x] - load[y] })
			nb.setState(m, vb, mcbp.VBAbsent)
			if i == 0 {
				nb.setState(m, vb, mcbp.VBActive)
				m.owner, m.lost = nil, nil
			} else {
				nb.setState(m, vb, mcbp.VBReplica)
				nb.copies[vb].copyOf(&m.chain[0].copies[vb])
			}
			m.chain[i] = nb
		}
		load[m.chain[i]]++
	}
}

// copyOf takes over all items and the history of another copy.
func (v *vcopy) copyOf(from *vcopy) {
	v.flog, v.uuid, v.ready = slices.Clone(from.flog), from.uuid, true
	for _, it := range from.log {
		switch {
		case it == nil:
		case it.event != nil:
			v.event(it.event, it.seqno)
		default:
			v.put(it)
		}
	}
	v.high = from.high
}
