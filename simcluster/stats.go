package simcluster

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cbpump/cbpump/mcbp"
)

// The answers of real servers to STAT without a key, one "name TAB value" a
// line, taken from testdata/captures. What the simulator knows better replaces
// the recorded value; everything else stays as it was recorded.
var (
	//go:embed stats/2.5.1.txt
	stats2 string
	//go:embed stats/3.0.3.txt
	stats3 string
	//go:embed stats/4.0.txt
	stats4 string
)

// stat serves STAT: one packet per name and an empty one at the end.
func (c *conn) stat(nb *nodeBucket, f *mcbp.Frame) {
	add := func(name, value string) {
		c.reply(f, mcbp.StatusOK, 0, nil, []byte(name), []byte(value))
	}
	group, arg, hasArg := strings.Cut(string(f.Key()), " ")
	if nb.b.memcached() {
		if group != "" {
			c.fail(f, mcbp.StatusNotFound)
			return
		}
		for _, name := range []string{"curr_items", "version"} {
			add(name, c.memcachedStat(nb, name))
		}
		c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
		return
	}
	var err mcbp.Status
	switch {
	case group == "":
		c.statsAll(nb, add)
	case group == "vbucket" && !hasArg:
		nb.eachCopy(func(vb uint16, v *vcopy) { add(fmt.Sprintf("vb_%d", vb), v.state.String()) })
	case group == "vbucket-details" && !hasArg:
		nb.eachCopy(func(vb uint16, v *vcopy) { c.statsDetails(nb, vb, v, add) })
	case group == "vbucket-seqno" && !hasArg && c.n.c.family >= 3:
		nb.eachCopy(func(vb uint16, v *vcopy) { statsSeqno(vb, v, add) })
	case group == "failovers" && !hasArg && c.n.c.family >= 3:
		nb.eachCopy(func(vb uint16, v *vcopy) { statsFailovers(vb, v, add) })
	case (group == "failovers" || group == "vbucket-details" || group == "vbucket-seqno") && c.n.c.family >= 3:
		err = c.statsOne(nb, group, arg, add)
	case group == "tap" && !hasArg:
		c.statsTap(add)
	default:
		err = mcbp.StatusNotFound
	}
	switch err {
	case mcbp.StatusOK:
		c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
	case mcbp.StatusNotFound:
		c.fail(f, err)
	default:
		c.reply(f, err, 0, nil, nil, nil)
	}
}

func (c *conn) memcachedStat(nb *nodeBucket, name string) string {
	if name == "version" {
		return c.n.c.shortVersion()
	}
	m := nb.b.vbs[0]
	m.mu.Lock()
	defer m.mu.Unlock()
	return strconv.Itoa(nb.copies[0].live)
}

// eachCopy calls f for the vbuckets that are on the node, in order and locked.
func (nb *nodeBucket) eachCopy(f func(vb uint16, v *vcopy)) {
	for vb, m := range nb.b.vbs {
		m.mu.Lock()
		if v := &nb.copies[vb]; v.state != mcbp.VBAbsent {
			f(uint16(vb), v)
		}
		m.mu.Unlock()
	}
}

// unflushed counts the items that the flusher has not written yet. The
// vbucket's lock is held.
func (v *vcopy) unflushed(delay time.Duration) int {
	if delay == 0 {
		return 0
	}
	since := time.Now().Add(-delay).UnixNano()
	n := 0
	for i := len(v.log) - 1; i >= 0; i-- {
		if it := v.log[i]; it != nil {
			if it.at <= since {
				break
			}
			n++
		}
	}
	return n
}

func (c *conn) statsDetails(nb *nodeBucket, vb uint16, v *vcopy, add func(name, value string)) {
	prefix := fmt.Sprintf("vb_%d", vb)
	add(prefix, v.state.String())
	num := func(name string, n uint64) { add(prefix+":"+name, strconv.FormatUint(n, 10)) }
	queue := uint64(v.unflushed(c.n.c.cfg.FlushDelay))
	filled := v.creates + v.updates + v.deletes
	num("num_items", uint64(v.live))
	num("num_temp_items", 0)
	num("num_non_resident", 0)
	num("ht_memory", 24736)
	num("ht_item_memory", v.memory)
	num("ht_cache_size", v.memory)
	num("num_ejects", 0)
	num("ops_create", v.creates)
	num("ops_update", v.updates)
	num("ops_delete", v.deletes)
	num("ops_reject", 0)
	num("queue_size", queue)
	num("queue_memory", 0)
	num("queue_fill", filled)
	num("queue_drain", filled-min(queue, filled))
	num("queue_age", 0)
	num("pending_writes", 0)
	if c.n.c.family < 3 {
		return
	}
	num("db_data_size", v.memory)
	num("db_file_size", 4096+v.memory)
	num("high_seqno", v.high)
	num("uuid", v.uuid)
	num("purge_seqno", 0)
	if c.n.c.family < 4 {
		return
	}
	add(prefix+":bloom_filter", "DOESN'T EXIST")
	num("max_cas", v.maxCAS)
	add(prefix+":drift_counter", "-140737488355328")
	add(prefix+":time_sync", "disabled")
}

func statsSeqno(vb uint16, v *vcopy, add func(name, value string)) {
	num := func(name string, n uint64) { add(fmt.Sprintf("vb_%d:%s", vb, name), strconv.FormatUint(n, 10)) }
	num("high_seqno", v.high)
	num("abs_high_seqno", v.high)
	num("uuid", v.uuid)
	num("purge_seqno", 0)
}

// statsFailovers tells the branches of a copy's history, newest first.
func statsFailovers(vb uint16, v *vcopy, add func(name, value string)) {
	num := func(name string, n uint64) { add(fmt.Sprintf("vb_%d:%s", vb, name), strconv.FormatUint(n, 10)) }
	for i, e := range v.flog {
		num(fmt.Sprintf("%d:id", i), e.UUID)
		num(fmt.Sprintf("%d:seq", i), e.Seqno)
	}
	num("num_entries", uint64(len(v.flog)))
	num("num_erroneous_entries_erased", 0)
}

// observeSeqno serves OBSERVE_SEQNO (value u64 uuid): how far a copy is in memory
// and on disk.
func (c *conn) observeSeqno(nb *nodeBucket, f *mcbp.Frame) {
	value := f.Value()
	if len(value) != 8 || int(f.VBucket) >= len(nb.copies) {
		status := mcbp.StatusInvalid
		if len(value) == 8 {
			status = mcbp.StatusNotMyVBucket
		}
		c.fail(f, status)
		return
	}
	uuid := binary.BigEndian.Uint64(value)
	m := nb.b.vbs[f.VBucket]
	m.mu.Lock()
	v := &nb.copies[f.VBucket]
	state, current, now := v.state, v.high, v.uuid
	onDisk := current - min(current, uint64(v.unflushed(c.n.c.cfg.FlushDelay)))
	at := slices.IndexFunc(v.flog, func(e mcbp.FailoverEntry) bool { return e.UUID == uuid })
	var last uint64
	if at > 0 {
		last = v.flog[at-1].Seqno
	}
	m.mu.Unlock()
	switch {
	case state == mcbp.VBAbsent:
		c.fail(f, mcbp.StatusNotMyVBucket)
		return
	case at < 0:
		c.fail(f, mcbp.StatusNotFound)
		return
	}
	body := []byte{0}
	if at > 0 {
		body[0] = 1 // the branch that was asked for is over
	}
	body = binary.BigEndian.AppendUint16(body, f.VBucket)
	body = binary.BigEndian.AppendUint64(body, now)
	body = binary.BigEndian.AppendUint64(body, onDisk)
	body = binary.BigEndian.AppendUint64(body, current)
	if at > 0 {
		body = binary.BigEndian.AppendUint64(body, uuid)
		body = binary.BigEndian.AppendUint64(body, last)
	}
	c.reply(f, mcbp.StatusOK, 0, nil, nil, body)
}

func (c *conn) statsOne(nb *nodeBucket, group, arg string, add func(name, value string)) mcbp.Status {
	vb, err := strconv.ParseUint(arg, 10, 16)
	if err != nil {
		return mcbp.StatusInvalid
	}
	if int(vb) >= len(nb.copies) {
		return mcbp.StatusNotMyVBucket
	}
	m := nb.b.vbs[vb]
	m.mu.Lock()
	defer m.mu.Unlock()
	v := &nb.copies[vb]
	switch {
	case v.state == mcbp.VBAbsent:
		return mcbp.StatusNotMyVBucket
	case group == "vbucket-details":
		c.statsDetails(nb, uint16(vb), v, add)
	case group == "failovers":
		statsFailovers(uint16(vb), v, add)
	default:
		statsSeqno(uint16(vb), v, add)
	}
	return mcbp.StatusOK
}

func (c *conn) statsTap(add func(name, value string)) {
	c.n.mu.Lock()
	producers := 0
	for o := range c.n.conns {
		if o.tap.Load() {
			producers++
		}
	}
	c.n.mu.Unlock()
	add("ep_tap_count", strconv.Itoa(producers))
	add("ep_tap_total_queue", "0")
	add("ep_tap_total_backlog_size", "0")
	add("ep_tap_noop_interval", strconv.Itoa(int(c.n.c.cfg.TapNoop/time.Second)))
}

// statsAll answers STAT without a key.
func (c *conn) statsAll(nb *nodeBucket, add func(name, value string)) {
	known := c.known(nb)
	recorded := stats2
	switch {
	case c.n.c.family == 3:
		recorded = stats3
	case c.n.c.family >= 4:
		recorded = stats4
	}
	_, port, _ := net.SplitHostPort(c.n.KV())
	for line := range strings.Lines(recorded) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if strings.HasPrefix(name, "ep_tap_") && !c.n.c.rel.hasTap() {
			continue
		}
		if v, ok := known[name]; ok {
			value = v
		}
		add(strings.Replace(name, "_port_PORT", "_port_"+port, 1), value)
	}
}

// known are the statistics that the simulator really has.
func (c *conn) known(nb *nodeBucket) map[string]string {
	type sum struct{ vbs, items, creates, updates, deletes int }
	var by [mcbp.VBDead + 1]sum
	queue, filled := 0, 0
	nb.eachCopy(func(_ uint16, v *vcopy) {
		s := &by[v.state]
		s.vbs++
		s.items += v.live
		s.creates += int(v.creates)
		s.updates += int(v.updates)
		s.deletes += int(v.deletes)
		queue += v.unflushed(c.n.c.cfg.FlushDelay)
		filled += int(v.creates + v.updates + v.deletes)
	})
	cfg := &c.n.c.cfg
	version := c.n.c.shortVersion()
	items := by[mcbp.VBActive].items
	all := items + by[mcbp.VBReplica].items + by[mcbp.VBPending].items + by[mcbp.VBDead].items
	known := map[string]string{
		"ep_version":             version,
		"version":                version,
		"ep_couch_bucket":        nb.b.cfg.Name,
		"ep_max_vbuckets":        strconv.Itoa(cfg.VBuckets),
		"ep_vb0":                 "0",
		"ep_max_item_size":       strconv.Itoa(maxItem),
		"ep_uuid":                nb.b.uuid,
		"ep_tap_ack_interval":    strconv.Itoa(cfg.TapAckInterval),
		"ep_tap_ack_window_size": strconv.Itoa(max(1, cfg.TapWindow/cfg.TapAckInterval)),
		"ep_tap_backoff_period":  strconv.FormatFloat(cfg.TapBackoff.Seconds(), 'g', -1, 64),
		"ep_tap_noop_interval":   strconv.Itoa(int(cfg.TapNoop / time.Second)),
		"ep_queue_size":          strconv.Itoa(queue),
		"ep_diskqueue_items":     strconv.Itoa(queue),
		"ep_flusher_todo":        "0",
		"ep_total_enqueued":      strconv.Itoa(filled),
		"ep_total_persisted":     strconv.Itoa(filled - queue),
		"curr_items":             strconv.Itoa(items),
		"curr_items_tot":         strconv.Itoa(all),
		"ep_vb_total":            strconv.Itoa(by[mcbp.VBActive].vbs + by[mcbp.VBReplica].vbs + by[mcbp.VBPending].vbs + by[mcbp.VBDead].vbs),
		"vb_dead_num":            strconv.Itoa(by[mcbp.VBDead].vbs),
		"pid":                    strconv.Itoa(os.Getpid()),
		"time":                   strconv.FormatInt(time.Now().Unix(), 10),
		"curr_connections":       strconv.Itoa(c.n.Connections()),
		"cmd_set":                strconv.FormatUint(c.n.Writes(), 10),
	}
	for _, s := range []mcbp.VBState{mcbp.VBActive, mcbp.VBReplica, mcbp.VBPending} {
		p := "vb_" + s.String() + "_"
		known[p+"num"] = strconv.Itoa(by[s].vbs)
		known[p+"curr_items"] = strconv.Itoa(by[s].items)
		known[p+"ops_create"] = strconv.Itoa(by[s].creates)
		known[p+"ops_update"] = strconv.Itoa(by[s].updates)
		known[p+"ops_delete"] = strconv.Itoa(by[s].deletes)
	}
	return known
}
