package simcluster

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// The shapes of the REST documents. Only fields that clients use are there.

type poolsDoc struct {
	Pools                 []poolRef `json:"pools"`
	IsAdminCreds          bool      `json:"isAdminCreds"`
	UUID                  any       `json:"uuid"` // a text, or an empty list before there is a cluster
	ImplementationVersion string    `json:"implementationVersion"`
	ComponentsVersion     struct {
		NSServer string `json:"ns_server"`
	} `json:"componentsVersion"`
}

type poolRef struct {
	Name         string `json:"name"`
	URI          string `json:"uri"`
	StreamingURI string `json:"streamingUri"`
}

type poolDoc struct {
	Name            string    `json:"name"`
	Nodes           []nodeDoc `json:"nodes"`
	Buckets         uriRef    `json:"buckets"`
	Tasks           uriRef    `json:"tasks"`
	RebalanceStatus string    `json:"rebalanceStatus"`
	Balanced        bool      `json:"balanced"`
	ServerGroupsURI string    `json:"serverGroupsUri"`
}

type uriRef struct {
	URI string `json:"uri"`
}

type nodeDoc struct {
	CouchAPIBase         string         `json:"couchApiBase,omitempty"`
	ClusterMembership    memberLabel    `json:"clusterMembership"`
	RecoveryType         string         `json:"recoveryType,omitempty"` // 3.0 and later
	Status               string         `json:"status"`
	OTPNode              string         `json:"otpNode,omitempty"`
	ThisNode             bool           `json:"thisNode,omitempty"`
	Hostname             string         `json:"hostname"`
	ClusterCompatibility int            `json:"clusterCompatibility"`
	Version              string         `json:"version"`
	OS                   string         `json:"os"`
	Ports                map[string]int `json:"ports"`
	Services             []string       `json:"services,omitempty"` // 4.0 and later
	NodeUUID             string         `json:"nodeUUID,omitempty"` // 5.0 and later

	Alternate map[string]alternate `json:"alternateAddresses,omitempty"`
}

type bucketDoc struct {
	Name                  string     `json:"name"`
	BucketType            string     `json:"bucketType"`
	AuthType              string     `json:"authType"`
	SASLPassword          *string    `json:"saslPassword,omitempty"` // up to 4.x
	ProxyPort             *int       `json:"proxyPort,omitempty"`
	ConflictResolution    string     `json:"conflictResolutionType,omitempty"` // 4.6 and later
	CollectionsUID        string     `json:"collectionsManifestUid,omitempty"` // 7.0 and later
	URI                   string     `json:"uri"`
	StreamingURI          string     `json:"streamingUri"`
	Nodes                 []nodeDoc  `json:"nodes"`
	NodeLocator           string     `json:"nodeLocator"`
	UUID                  string     `json:"uuid"`
	ReplicaNumber         *int       `json:"replicaNumber,omitempty"`
	VBucketServerMap      *vbMapDoc  `json:"vBucketServerMap,omitempty"`
	BucketCapabilitiesVer string     `json:"bucketCapabilitiesVer"`
	BucketCapabilities    []string   `json:"bucketCapabilities,omitempty"`
	BasicStats            basicStats `json:"basicStats"`
}

type basicStats struct {
	ItemCount int `json:"itemCount"`
}

type vbMapDoc struct {
	HashAlgorithm     string   `json:"hashAlgorithm"`
	NumReplicas       int      `json:"numReplicas"`
	ServerList        []string `json:"serverList"`
	VBucketMap        [][]int  `json:"vBucketMap"`
	VBucketMapForward [][]int  `json:"vBucketMapForward,omitempty"`
}

// terseDoc is /pools/default/b/B and the body of NOT_MY_VBUCKET.
type terseDoc struct {
	Rev                   int         `json:"rev"`
	Name                  string      `json:"name"`
	URI                   string      `json:"uri"`
	StreamingURI          string      `json:"streamingUri"`
	Nodes                 []terseNode `json:"nodes"`
	NodesExt              []nodeExt   `json:"nodesExt,omitempty"` // 3.0 and later
	NodeLocator           string      `json:"nodeLocator"`
	UUID                  string      `json:"uuid"`
	VBucketServerMap      *vbMapDoc   `json:"vBucketServerMap,omitempty"`
	BucketCapabilitiesVer string      `json:"bucketCapabilitiesVer"`
	BucketCapabilities    []string    `json:"bucketCapabilities,omitempty"`
	CollectionsUID        string      `json:"collectionsManifestUid,omitempty"`
	RevEpoch              int         `json:"revEpoch,omitempty"` // 7.0 and later
}

type terseNode struct {
	CouchAPIBase string         `json:"couchApiBase,omitempty"`
	Hostname     string         `json:"hostname"`
	Ports        map[string]int `json:"ports"`
}

type nodeExt struct {
	Services  map[string]int       `json:"services"`
	ThisNode  bool                 `json:"thisNode,omitempty"`
	Hostname  string               `json:"hostname,omitempty"`
	Alternate map[string]alternate `json:"alternateAddresses,omitempty"` // 5.5 and later
}

// alternate is a node's address in another network.
type alternate struct {
	Hostname string         `json:"hostname"`
	Ports    map[string]int `json:"ports,omitempty"`
}

type nodeServicesDoc struct {
	Rev      int       `json:"rev"`
	RevEpoch int       `json:"revEpoch,omitempty"`
	NodesExt []nodeExt `json:"nodesExt"`
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// hostName is a node's name in full documents, in brackets where it is IPv6.
func (c *Cluster) hostName() string {
	name := c.cfg.AdvertiseHost
	if name == "" {
		name = c.cfg.Host
	}
	return bracketed(name)
}

// terseName is a node's name in terse documents: a server that was never given a
// name does not know it and says so.
func (c *Cluster) terseName() string {
	if c.cfg.AdvertiseHost == "" {
		return "$HOST"
	}
	return bracketed(c.cfg.AdvertiseHost)
}

func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

func hostPort(host string, port int) string { return host + ":" + strconv.Itoa(port) }

// locator is how clients find a key's node.
func (b *Bucket) locator() string {
	if b.memcached() {
		return "ketama"
	}
	return "vbucket"
}

func (b *Bucket) capabilities() []string {
	caps := []string{"touch", "couchapi"}
	switch {
	case b.memcached():
		return nil
	case b.c.rel.hasCollections():
		return []string{"collections", "durableWrite", "tombstonedUserXAttrs", "couchapi", "subdoc.ReplaceBodyWithXattr", "subdoc.DocumentMacroSupport", "dcp", "cbhello", "touch", "cccp", "xdcrCheckpointing", "nodesExt", "xattr"}
	case b.c.rel >= rel65:
		return []string{"durableWrite", "tombstonedUserXAttrs", "couchapi", "dcp", "cbhello", "touch", "cccp", "xdcrCheckpointing", "nodesExt", "xattr"}
	case b.c.rel.hasUsers():
		return []string{"couchapi", "xattr", "dcp", "cbhello", "touch", "cccp", "xdcrCheckpointing", "nodesExt"}
	case b.c.rel >= rel46:
		caps = append(caps, "dcp", "cbhello", "cccp", "xdcrCheckpointing", "nodesExt")
	case b.c.family == 3:
		caps = append(caps, "cbhello", "dcp")
	case b.c.family >= 4:
		caps = append(caps, "dcp", "cbhello", "xdcrCheckpointing", "nodesExt")
	}
	return caps
}

func (n *Node) doc(self *Node) nodeDoc {
	c := n.c
	d := nodeDoc{
		ClusterMembership: n.membership, Status: "healthy", OTPNode: n.OTP(), ThisNode: n == self,
		Hostname:             hostPort(c.hostName(), portOf(n.rest)),
		ClusterCompatibility: c.rel.compatibility(), Version: c.version, OS: "x86_64-unknown-linux-gnu",
		Ports: map[string]int{"direct": portOf(n.kv), "proxy": 0},
	}
	if c.rel.hasUsers() {
		delete(d.Ports, "proxy")
	}
	if n.restTLS != nil {
		d.Ports["httpsMgmt"] = portOf(n.restTLS)
	}
	if c.rel.hasUsers() {
		d.NodeUUID = fmt.Sprintf("%032x", n.number+1)
	}
	d.Alternate = n.alternates()
	if n.Dead() {
		d.Status = "unhealthy"
	}
	if c.family >= 3 {
		d.RecoveryType = "none"
	}
	if c.family >= 4 {
		d.Services = []string{"kv"}
	}
	return d
}

func (n *Node) ext(self *Node) nodeExt {
	e := nodeExt{Services: map[string]int{"mgmt": portOf(n.rest), "kv": portOf(n.kv)}, ThisNode: n == self}
	if n.restTLS != nil {
		e.Services["mgmtSSL"], e.Services["kvSSL"] = portOf(n.restTLS), portOf(n.kvTLS)
	}
	e.Alternate = n.alternates()
	if n.c.cfg.AdvertiseHost != "" && n.c.cfg.AdvertiseHost != "$HOST" {
		e.Hostname = n.c.cfg.AdvertiseHost
	}
	return e
}

func (n *Node) alternates() map[string]alternate {
	if n.c.cfg.ExternalHost == "" || n.c.rel < rel55 {
		return nil
	}
	ports := map[string]int{"mgmt": portOf(n.rest), "kv": portOf(n.kv)}
	if n.restTLS != nil {
		ports["mgmtSSL"], ports["kvSSL"] = portOf(n.restTLS), portOf(n.kvTLS)
	}
	return map[string]alternate{"external": {Hostname: n.c.cfg.ExternalHost, Ports: ports}}
}

func (c *Cluster) poolsDoc(self *Node, admin bool) poolsDoc {
	d := poolsDoc{ImplementationVersion: c.version, IsAdminCreds: admin, Pools: []poolRef{}, UUID: []string{}}
	d.ComponentsVersion.NSServer = c.version
	c.mu.Lock()
	defer c.mu.Unlock()
	if self.membership != memberNone {
		d.UUID = c.uuid
		d.Pools = append(d.Pools, poolRef{
			Name: "default", URI: "/pools/default?uuid=" + c.uuid, StreamingURI: "/poolsStreaming/default?uuid=" + c.uuid,
		})
	}
	return d
}

func (c *Cluster) poolDoc(self *Node) poolDoc {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := poolDoc{
		Name: "default", RebalanceStatus: "none", Balanced: true,
		Buckets: uriRef{"/pools/default/buckets"}, Tasks: uriRef{"/pools/default/tasks"},
		ServerGroupsURI: "/pools/default/serverGroups",
	}
	for _, n := range c.members {
		d.Nodes = append(d.Nodes, n.doc(self))
		d.Balanced = d.Balanced && n.membership == memberActive
	}
	return d
}

func (c *Cluster) bucketsDoc(self *Node, user *account) []bucketDoc {
	c.mu.Lock()
	defer c.mu.Unlock()
	docs := make([]bucketDoc, 0, len(c.names))
	for _, name := range c.names {
		if user != nil && !user.mayEnter(name) {
			continue
		}
		docs = append(docs, c.buckets[name].doc(self))
	}
	return docs
}

// doc is the full document of a bucket. The cluster's lock is held.
func (b *Bucket) doc(self *Node) bucketDoc {
	d := bucketDoc{
		Name: b.cfg.Name, BucketType: b.cfg.Type, AuthType: "sasl",
		URI:          fmt.Sprintf("/pools/default/buckets/%s?bucket_uuid=%s", b.cfg.Name, b.uuid),
		StreamingURI: fmt.Sprintf("/pools/default/bucketsStreaming/%s?bucket_uuid=%s", b.cfg.Name, b.uuid),
		NodeLocator:  b.locator(), UUID: b.uuid, BucketCapabilities: b.capabilities(),
		Nodes: []nodeDoc{},
	}
	if !b.c.rel.hasUsers() {
		port := 0
		d.SASLPassword, d.ProxyPort = &b.cfg.Password, &port
	}
	if b.c.rel >= rel46 && !b.memcached() {
		d.ConflictResolution = b.cfg.ConflictResolution
		if d.ConflictResolution == "" {
			d.ConflictResolution = "seqno"
		}
	}
	if b.c.rel.hasCollections() && !b.memcached() {
		d.CollectionsUID = hexText(b.manifestUID())
	}
	for _, nb := range b.nodes {
		n := nb.node.doc(self)
		if b.c.family < 3 {
			n.OTPNode = "" // only /pools/default has it there
		}
		if !b.memcached() {
			n.CouchAPIBase = "http://" + hostPort(b.c.hostName(), portOf(nb.node.rest)) + "/" + b.cfg.Name
		}
		d.Nodes = append(d.Nodes, n)
	}
	for vb, m := range b.vbs {
		m.mu.Lock()
		if b.memcached() {
			for _, nb := range b.nodes {
				d.BasicStats.ItemCount += nb.copies[vb].live
			}
		} else if nb := m.chain[0]; nb != nil {
			d.BasicStats.ItemCount += nb.copies[vb].live
		}
		m.mu.Unlock()
	}
	if !b.memcached() {
		d.ReplicaNumber = &b.cfg.Replicas
		d.VBucketServerMap = b.mapDoc(b.c.hostName())
	}
	return d
}

func (b *Bucket) mapDoc(host string) *vbMapDoc {
	d := &vbMapDoc{HashAlgorithm: "CRC", NumReplicas: b.cfg.Replicas, ServerList: []string{}}
	for _, nb := range b.nodes {
		d.ServerList = append(d.ServerList, hostPort(host, portOf(nb.node.kv)))
	}
	d.VBucketMap, d.VBucketMapForward = b.maps()
	return d
}

// terseFor is the terse document as a node gives it.
func (b *Bucket) terseFor(self *Node) []byte {
	c := b.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if cached, ok := b.terse[self]; ok && cached.rev == c.rev {
		return cached.doc
	}
	d := terseDoc{
		Rev: c.rev, Name: b.cfg.Name, NodeLocator: b.locator(), UUID: b.uuid, BucketCapabilities: b.capabilities(),
		URI:          fmt.Sprintf("/pools/default/buckets/%s?bucket_uuid=%s", b.cfg.Name, b.uuid),
		StreamingURI: fmt.Sprintf("/pools/default/bs/%s?bucket_uuid=%s", b.cfg.Name, b.uuid),
		Nodes:        []terseNode{},
	}
	if c.rel.hasCollections() {
		d.RevEpoch = 1
		if !b.memcached() {
			d.CollectionsUID = hexText(b.manifestUID())
		}
	}
	for _, nb := range b.nodes {
		d.Nodes = append(d.Nodes, terseNode{
			Hostname: hostPort(c.terseName(), portOf(nb.node.rest)),
			Ports:    map[string]int{"direct": portOf(nb.node.kv), "proxy": 0},
		})
		if c.family >= 3 {
			d.NodesExt = append(d.NodesExt, nb.node.ext(self))
		}
	}
	if !b.memcached() {
		d.VBucketServerMap = b.mapDoc(c.terseName())
	}
	doc := mustJSON(d)
	b.terse[self] = terseCache{rev: c.rev, doc: doc}
	return doc
}

func (c *Cluster) nodeServices(self *Node) nodeServicesDoc {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := nodeServicesDoc{Rev: c.rev, NodesExt: []nodeExt{}}
	for _, n := range c.members {
		if n.membership == memberActive {
			d.NodesExt = append(d.NodesExt, n.ext(self))
		}
	}
	return d
}

// mustJSON encodes one of the documents above, none of which can fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Appendf(nil, "%q", err.Error())
	}
	return b
}

// memberAt finds a member by an address as documents and people write it:
// host:port of its REST port. The cluster's lock is held.
func (c *Cluster) memberAt(addr string) *Node { return findNode(c.members, c, addr) }

// nodeAt is memberAt among all nodes that run, members or not.
func (c *Cluster) nodeAt(addr string) *Node { return findNode(c.universe, c, addr) }

func findNode(nodes []*Node, c *Cluster, addr string) *Node {
	i := slices.IndexFunc(nodes, func(n *Node) bool {
		port := portOf(n.rest)
		return addr == n.REST() || addr == hostPort(c.hostName(), port) || addr == hostPort("localhost", port)
	})
	if i < 0 {
		return nil
	}
	return nodes[i]
}
