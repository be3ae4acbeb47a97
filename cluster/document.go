package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// The documents of the REST port as far as they are used here. Servers from 1.8
// on write them; what an old server leaves out is zero.

type nodeDoc struct {
	Hostname          string `json:"hostname"`
	OTPNode           string `json:"otpNode"`
	Status            string `json:"status"`
	ClusterMembership string `json:"clusterMembership"`
	Version           string `json:"version"`
	Compatibility     int64  `json:"clusterCompatibility"` // major << 16 | minor
	ThisNode          bool   `json:"thisNode"`
	Ports             struct {
		Direct int `json:"direct"`
	} `json:"ports"`
}

type bucketDoc struct {
	Name         string    `json:"name"`
	BucketType   string    `json:"bucketType"`
	NodeLocator  string    `json:"nodeLocator"`
	AuthType     string    `json:"authType"`
	SASLPassword string    `json:"saslPassword"`
	UUID         string    `json:"uuid"`
	Replicas     int       `json:"replicaNumber"`
	Nodes        []nodeDoc `json:"nodes"`
	Map          *mapDoc   `json:"vBucketServerMap"`

	ConflictResolution string   `json:"conflictResolutionType"`
	Capabilities       []string `json:"bucketCapabilities"`
	StorageBackend     string   `json:"storageBackend"`
	ManifestUID        string   `json:"collectionsManifestUid"` // hex
}

type mapDoc struct {
	HashAlgorithm string   `json:"hashAlgorithm"`
	NumReplicas   *int     `json:"numReplicas"`
	ServerList    []string `json:"serverList"`
	VBuckets      [][]int  `json:"vBucketMap"`
	Forward       [][]int  `json:"vBucketMapForward"`
}

// maxVBuckets is what a vbucket number on the wire allows, less the one that
// stands for "none".
const maxVBuckets = 1<<16 - 1

var errNotJSON = errors.New("not JSON")

// decodeJSON decodes a document. Its errors quote nothing of a body that may be
// a document: it may hold the bucket's password.
func decodeJSON(body []byte, into any) error {
	err := json.Unmarshal(body, into)
	if err == nil {
		return nil
	}
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	trimmed := bytes.TrimLeft(body, " \t\r\n\ufeff")
	looksJSON := len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '[')
	switch {
	case errors.As(err, &typ) && typ.Field == "":
		return fmt.Errorf("it is JSON of another shape (%s)", jsonKind(typ.Value))
	case errors.As(err, &typ):
		return fmt.Errorf("its field %q is a JSON %s, which does not fit", clip(typ.Field, 80), jsonKind(typ.Value))
	case errors.As(err, &syntax) && looksJSON && syntax.Offset >= int64(len(body)):
		return fmt.Errorf("it is JSON that breaks off after %d bytes", len(body))
	case errors.As(err, &syntax) && looksJSON:
		return fmt.Errorf("it is broken JSON at byte %d of %d", syntax.Offset, len(body))
	case looksJSON:
		return errors.New("it is JSON that cannot be decoded")
	}
	return errNotJSON
}

// jsonKind is the kind of a JSON value without the value, which may be a secret.
func jsonKind(described string) string {
	kind, _, _ := strings.Cut(described, " ")
	return kind
}

// node puts a node's document right; asked is the host that answered with it.
func (d *nodeDoc) node(asked string) (Node, error) {
	n := Node{OTP: d.OTPNode, Status: d.Status, Membership: d.ClusterMembership, Self: d.ThisNode}
	host, port := d.Hostname, defaultRESTPort
	if h, p, err := splitAddr(d.Hostname); err == nil {
		host, port = h, p
	} else if net.ParseIP(d.Hostname) == nil && strings.ContainsAny(d.Hostname, ":[]/@ ") {
		return Node{}, fmt.Errorf("the node name %w", err)
	}
	host = seenFrom(asked, host)
	n.Host = net.JoinHostPort(host, port)
	switch p := d.Ports.Direct; {
	case p < 0 || p > 65535:
		return Node{}, fmt.Errorf("node %s has a data port of %d", n.Host, p)
	case p != 0:
		n.KV = net.JoinHostPort(host, strconv.Itoa(p))
	}
	// A version that says nothing leaves the zero Version, "unknown": a node is
	// not refused for its name.
	n.Version, _ = ParseVersion(d.Version)
	if d.Compatibility > 1 { // 1 is what 1.8 says
		n.Compat = Version{Major: int(d.Compatibility >> 16), Minor: int(d.Compatibility & 0xffff)}
	}
	return n, nil
}

// bucket turns the document into a Bucket as seen from the host asked.
func (d *bucketDoc) bucket(asked string) (*Bucket, error) {
	switch {
	case d.Name == "":
		return nil, errors.New("it is no bucket's document: it has no name")
	case d.Nodes == nil:
		return nil, errors.New("it is no bucket's document: it lists no nodes")
	}
	b := &Bucket{
		Name: d.Name, Type: d.BucketType, UUID: d.UUID, Replicas: d.Replicas,
		ConflictResolution: d.ConflictResolution, Capabilities: d.Capabilities, StorageBackend: d.StorageBackend,
	}
	if d.ManifestUID != "" {
		var err error
		if b.ManifestUID, err = parseHexID(d.ManifestUID, 64); err != nil {
			return nil, fmt.Errorf("its collectionsManifestUid %w", err)
		}
	}
	if b.Type == "" && d.NodeLocator == "ketama" {
		b.Type = typeMemcached
	}
	if !strings.EqualFold(d.AuthType, "none") {
		b.password = newSecret(d.SASLPassword)
	}
	for i := range d.Nodes {
		n, err := d.Nodes[i].node(asked)
		if err != nil {
			return nil, err
		}
		b.Nodes = append(b.Nodes, n)
	}
	if b.Type == typeMemcached || d.Map == nil {
		return b, nil
	}
	if n := d.Map.NumReplicas; n != nil {
		b.Replicas = *n
	}
	m, err := d.Map.vbuckets(asked)
	if err != nil {
		return nil, err
	}
	// Where the map and the list of nodes write one endpoint differently, the
	// node's own address is used in both, so that they can be compared as text.
	for i, s := range m.Servers {
		for _, n := range b.Nodes {
			if n.KV != "" && sameAddr(n.KV, s) {
				m.Servers[i] = n.KV
				break
			}
		}
	}
	b.Map = m
	return b, nil
}

func (d *mapDoc) vbuckets(asked string) (Map, error) {
	if d.HashAlgorithm != "" && !strings.EqualFold(d.HashAlgorithm, "CRC") {
		return Map{}, fmt.Errorf("keys are hashed with %q, which is unknown; only CRC is", clip(d.HashAlgorithm, 40))
	}
	if len(d.VBuckets) > maxVBuckets {
		return Map{}, fmt.Errorf("the vbucket map has %d entries; there are at most %d vbuckets", len(d.VBuckets), maxVBuckets)
	}
	m := Map{VBuckets: d.VBuckets}
	for _, s := range d.ServerList {
		host, port, err := splitAddr(s)
		if err != nil {
			return Map{}, fmt.Errorf("the server list's entry %w", err)
		}
		m.Servers = append(m.Servers, net.JoinHostPort(seenFrom(asked, host), port))
	}
	if err := checkRows("vBucketMap", d.VBuckets, len(m.Servers)); err != nil {
		return Map{}, err
	}
	if len(d.Forward) == 0 {
		return m, nil
	}
	if len(d.Forward) != len(d.VBuckets) {
		return Map{}, fmt.Errorf("vBucketMapForward has %d entries and vBucketMap %d", len(d.Forward), len(d.VBuckets))
	}
	if err := checkRows("vBucketMapForward", d.Forward, len(m.Servers)); err != nil {
		return Map{}, err
	}
	m.Forward = d.Forward
	return m, nil
}

func checkRows(name string, rows [][]int, servers int) error {
	for vb, row := range rows {
		if len(row) == 0 {
			return fmt.Errorf("%s has no entry for vbucket %d", name, vb)
		}
		for _, at := range row {
			if at < -1 || at >= servers {
				return fmt.Errorf("%s places vbucket %d on server %d of a list of %d", name, vb, at, servers)
			}
		}
	}
	return nil
}
