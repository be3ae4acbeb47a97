package simcluster

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
	"strings"
	"sync"

	"github.com/cbpump/cbpump/mcbp"
)

// User is an account of a cluster from 5.0 on.
type User struct {
	Name, Password string
	// Roles as servers name them: "admin", "ro_admin", "bucket_full_access[b]",
	// "bucket_admin[b]", "data_reader[b]", "data_writer[b]", "data_dcp_reader[b]",
	// "data_backup[b]", "replication_target[b]"; * is any bucket, and from 7.0 on
	// b:scope and b:scope:collection narrow it.
	Roles []string
}

// privilege is what a request needs, by the name that refusals give it.
type privilege string

const (
	privRead     privilege = "Read"
	privInsert   privilege = "Insert"
	privUpsert   privilege = "Upsert"
	privDelete   privilege = "Delete"
	privMetaRead privilege = "MetaRead"
	privMeta     privilege = "MetaWrite"
	privProducer privilege = "DcpProducer"
	privConsumer privilege = "DcpConsumer"
	privManage   privilege = "BucketManagement"
	privStats    privilege = "SimpleStats"
)

// roleGrants are the privileges of roles that are bound to buckets.
var roleGrants = map[string][]privilege{
	"bucket_full_access": {privRead, privInsert, privUpsert, privDelete, privMetaRead, privMeta, privProducer, privStats},
	"bucket_admin":       {privStats},
	"data_reader":        {privRead, privMetaRead},
	"data_writer":        {privInsert, privUpsert, privDelete},
	"data_dcp_reader":    {privRead, privMetaRead, privProducer, privStats},
	"data_backup":        {privRead, privInsert, privUpsert, privDelete, privMetaRead, privMeta, privProducer, privStats},
	"replication_target": {privRead, privMetaRead, privMeta, privStats},
}

// account is a user with what is derived from the password.
type account struct {
	name, password string
	admin, roAdmin bool
	grants         []grant

	mu     sync.Mutex
	salted map[string]*salted // by mechanism
}

type grant struct {
	role                      string
	bucket, scope, collection string
}

type salted struct {
	salt              []byte
	stored, serverKey []byte
}

func newAccount(u User) (*account, error) {
	a := &account{name: u.Name, password: u.Password, salted: make(map[string]*salted)}
	for _, r := range u.Roles {
		role, scope, _ := strings.Cut(strings.TrimSuffix(r, "]"), "[")
		switch {
		case role == "admin" || role == "full_admin":
			a.admin = true
			continue
		case role == "ro_admin":
			a.roAdmin = true
			continue
		case role == "bucket_full":
			role = "bucket_full_access"
		}
		if roleGrants[role] == nil {
			return nil, fmt.Errorf("simcluster: user %q has the unknown role %q", u.Name, r)
		}
		part := strings.SplitN(scope+"::", ":", 4)
		g := grant{role: role, bucket: part[0], scope: part[1], collection: part[2]}
		if g.bucket == "" {
			g.bucket = "*"
		}
		a.grants = append(a.grants, g)
	}
	return a, nil
}

// mayEnter reports that the user may select the bucket.
func (a *account) mayEnter(bucket string) bool {
	return a.admin || slices.ContainsFunc(a.grants, func(g grant) bool { return g.bucket == "*" || g.bucket == bucket })
}

// may reports that the user has a privilege in the whole bucket.
func (a *account) may(p privilege, bucket string) bool {
	if a.admin {
		return true
	}
	return slices.ContainsFunc(a.grants, func(g grant) bool {
		return (g.bucket == "*" || g.bucket == bucket) && (g.scope == "" || g.scope == "*") && slices.Contains(roleGrants[g.role], p)
	})
}

// mayIn reports that the user has a privilege in a collection; anywhere is for
// requests that name none.
func (a *account) mayIn(p privilege, b *Bucket, scope, collection string) bool {
	if a.may(p, b.cfg.Name) {
		return true
	}
	return slices.ContainsFunc(a.grants, func(g grant) bool {
		return (g.bucket == "*" || g.bucket == b.cfg.Name) && g.scope == scope &&
			(g.collection == "" || g.collection == "*" || g.collection == collection) && slices.Contains(roleGrants[g.role], p)
	})
}

// somewhere reports that the user has a privilege in some collection.
func (a *account) somewhere(p privilege, bucket string) bool {
	return a.admin || slices.ContainsFunc(a.grants, func(g grant) bool {
		return (g.bucket == "*" || g.bucket == bucket) && slices.Contains(roleGrants[g.role], p)
	})
}

var mechanisms = map[string]func() hash.Hash{
	"SCRAM-SHA512": sha512.New, "SCRAM-SHA256": sha256.New, "SCRAM-SHA1": sha1.New,
}

// scramRounds is the work of deriving a key. Servers ask for 4096 and more, which
// is to slow down whoever guesses; here it would slow down every login of every
// test, under the race detector to the larger half of all work.
const scramRounds = 64

// derive is what a server keeps of a password for one mechanism.
func (a *account) derive(mech string) (*salted, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.salted[mech]; s != nil {
		return s, nil
	}
	h := mechanisms[mech]
	s := &salted{salt: make([]byte, h().Size())}
	rand.Read(s.salt)
	key, err := pbkdf2.Key(h, a.password, s.salt, scramRounds, h().Size())
	if err != nil {
		return nil, fmt.Errorf("derive a SCRAM key: %w", err)
	}
	d := h()
	d.Write(sign(h, key, "Client Key"))
	s.stored, s.serverKey = d.Sum(nil), sign(h, key, "Server Key")
	a.salted[mech] = s
	return s, nil
}

func sign(h func() hash.Hash, key []byte, text string) []byte {
	mac := hmac.New(h, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// scram is a SCRAM login under way.
type scram struct {
	mech    string
	account *account // nil for a user that does not exist
	keys    *salted
	bare    string // the client's first message without its header
	server  string // the server's first message
	nonce   string
}

// authModern serves SASL_AUTH and SASL_STEP from 5.0 on; false closes.
func (c *conn) authModern(f *mcbp.Frame) bool {
	cl := c.n.c
	mech, value := string(f.Key()), f.Value()
	login := c.scram
	c.scram = nil
	switch {
	case f.Opcode == mcbp.OpSASLAuth && mech == "PLAIN":
		parts := bytes.Split(value, []byte{0})
		if len(parts) != 3 {
			c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
			return true
		}
		a := cl.account(string(parts[1]))
		if a != nil && !hmac.Equal(parts[2], []byte(a.password)) {
			a = nil
		}
		c.welcome(f, a, nil)
	case f.Opcode == mcbp.OpSASLAuth && mechanisms[mech] != nil:
		return c.scramFirst(f, mech, string(value))
	case f.Opcode == mcbp.OpSASLAuth && cl.rel >= rel65:
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
	case f.Opcode == mcbp.OpSASLAuth:
		c.welcome(f, nil, nil)
	case login == nil || login.mech != mech:
		if cl.rel < rel65 {
			c.welcome(f, nil, nil)
			break
		}
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, contextBody("Logic error: The server expects the client to start with SASL_START before sending SASL STEP"))
	default:
		c.scramLast(f, login, string(value))
	}
	return true
}

// attribute finds one attribute of a SCRAM message.
func attribute(message, name string) string {
	for part := range strings.SplitSeq(message, ",") {
		if v, ok := strings.CutPrefix(part, name+"="); ok {
			return v
		}
	}
	return ""
}

func (c *conn) scramFirst(f *mcbp.Frame, mech, first string) bool {
	bare, ok := strings.CutPrefix(first, "n,,")
	nonce := attribute(bare, "r")
	if !ok || nonce == "" || !strings.HasPrefix(bare, "n=") {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, nil)
		return true
	}
	name := strings.NewReplacer("=2C", ",", "=3D", "=").Replace(attribute(bare, "n"))
	s := &scram{mech: mech, bare: bare, account: c.n.c.account(name)}
	var random [16]byte
	rand.Read(random[:])
	s.nonce = nonce + fmt.Sprintf("%x", random)
	if s.account != nil {
		keys, err := s.account.derive(mech)
		if err != nil {
			return false
		}
		s.keys = keys
	} else {
		// Who does not exist gets a salt too, always the same one.
		s.keys = &salted{salt: sign(mechanisms[mech], []byte(c.n.c.uuid), name)}
	}
	s.server = fmt.Sprintf("r=%s,s=%s,i=%d", s.nonce, base64.StdEncoding.EncodeToString(s.keys.salt), scramRounds)
	c.scram = s
	c.reply(f, mcbp.StatusAuthContinue, 0, nil, nil, []byte(s.server))
	return true
}

func (c *conn) scramLast(f *mcbp.Frame, s *scram, last string) {
	without, proofText, found := strings.Cut(last, ",p=")
	proof, err := base64.StdEncoding.DecodeString(proofText)
	h := mechanisms[s.mech]
	if s.account == nil || !found || err != nil || attribute(without, "r") != s.nonce || attribute(without, "c") != "biws" || len(proof) != h().Size() {
		c.welcome(f, nil, nil)
		return
	}
	message := s.bare + "," + s.server + "," + without
	signature := sign(h, s.keys.stored, message)
	for i := range proof {
		proof[i] ^= signature[i]
	}
	d := h()
	d.Write(proof)
	if !hmac.Equal(d.Sum(nil), s.keys.stored) {
		c.welcome(f, nil, nil)
		return
	}
	v := "v=" + base64.StdEncoding.EncodeToString(sign(h, s.keys.serverKey, message))
	c.welcome(f, s.account, []byte(v))
}

// reference is the random id that refusals carry.
func reference() string {
	var b [16]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// welcome answers a login; a is nil when it is refused.
func (c *conn) welcome(f *mcbp.Frame, a *account, body []byte) {
	if a == nil {
		c.user = nil
		c.bucket.Store(nil)
		c.reply(f, mcbp.StatusAuthError, 0, nil, nil, fmt.Appendf(nil, `{"error":{"ref":"%s"}}`, reference()))
		return
	}
	c.user = a
	c.bucket.Store(nil)
	// A user named like a bucket is in it from the start.
	if nb := c.n.bucket(a.name); nb != nil && a.mayEnter(a.name) {
		c.bucket.Store(nb)
	}
	c.reply(f, mcbp.StatusOK, 0, nil, nil, body)
}

// account finds who may log in; from 5.0 on.
func (c *Cluster) account(name string) *account { return c.accounts[name] }

func (c *Cluster) makeAccounts() error {
	c.accounts = make(map[string]*account)
	users := []User{
		{Name: c.cfg.Username, Password: c.cfg.Password, Roles: []string{"admin"}},
		{Name: "@admin", Password: c.cfg.Password, Roles: []string{"admin"}},
	}
	for _, b := range c.cfg.Buckets {
		if b.Password != "" {
			users = append(users, User{Name: b.Name, Password: b.Password, Roles: []string{"bucket_full_access[" + b.Name + "]"}})
		}
	}
	for _, u := range append(users, c.cfg.Users...) {
		a, err := newAccount(u)
		if err != nil {
			return err
		}
		c.accounts[u.Name] = a
	}
	return nil
}

// granted are the features that HELLO grants by version.
func (r release) granted() []uint16 {
	switch {
	case r < rel50:
		return []uint16{featDatatype, featTCPNoDelay}
	case r < rel65:
		return []uint16{3, 4, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf}
	case r < rel70:
		return []uint16{3, 4, 6, 7, 8, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0x10, 0x11, 0x12, 0x15, 0x17}
	}
	return []uint16{3, 4, 6, 7, 8, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0x10, 0x11, 0x12, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19}
}

const (
	featTCPDelay = 5
	featDuplex   = 0xc
	featMapNews  = 0xd
	featTracing  = 0xf
	featVAttr    = 0x15
)

// has reports that HELLO granted a feature.
func (c *conn) has(feature uint16) bool { return c.features>>feature&1 == 1 }

// helloModern serves HELLO from 5.0 on.
func (c *conn) helloModern(f *mcbp.Frame) {
	v := f.Value()
	bad := func(text string) {
		c.reply(f, mcbp.StatusInvalid, 0, nil, nil, contextBody(text))
	}
	if len(v)%2 != 0 || f.ExtLen != 0 {
		bad("Request value must be of even length")
		return
	}
	var asked uint64
	for i := 0; i < len(v); i += 2 {
		if n := binary.BigEndian.Uint16(v[i:]); n < 64 {
			asked |= 1 << n
		}
	}
	wants := func(n uint) bool { return asked>>n&1 == 1 }
	switch {
	case wants(uint(featTCPNoDelay)) && wants(featTCPDelay):
		bad("TCPNODELAY cannot co-exist with TCPDELAY")
		return
	case wants(featMapNews) && !wants(featDuplex):
		text := "Clustermap change notification needs Duplex"
		if c.n.c.rel < rel65 {
			text = "ClustermapChangeNotification needs Duplex"
		}
		bad(text)
		return
	case c.n.c.rel >= rel65 && wants(featVAttr) && !wants(mcbp.FeatureXattr):
		bad("VAttr needs XATTR")
		return
	}
	c.features = 0 // each HELLO replaces the one before
	var granted []byte
	for _, n := range c.n.c.rel.granted() {
		if wants(uint(n)) {
			c.features |= 1 << n
			granted = binary.BigEndian.AppendUint16(granted, n)
		}
	}
	c.datatype = c.has(mcbp.FeatureJSON)
	tracing := c.features & (1 << featTracing)
	c.features &^= tracing // from the next answer on
	c.reply(f, mcbp.StatusOK, 0, nil, nil, granted)
	c.features |= tracing
}

// selectBucket serves SELECT_BUCKET; false closes.
func (c *conn) selectBucket(f *mcbp.Frame) bool {
	name := string(f.Key())
	if c.user == nil || !c.user.mayEnter(name) {
		return c.denied(f, nil)
	}
	nb := c.n.bucket(name)
	if nb == nil {
		c.reply(f, mcbp.StatusNotFound, 0, nil, nil, nil)
		return true
	}
	c.bucket.Store(nb)
	c.reply(f, mcbp.StatusOK, 0, nil, nil, nil)
	return true
}

// denied answers 0x24, or closes where the client does not know that status.
func (c *conn) denied(f *mcbp.Frame, body []byte) bool {
	if !c.has(mcbp.FeatureXerror) {
		return false
	}
	datatype := uint8(0)
	if len(body) > 0 && c.datatype {
		datatype = uint8(mcbp.DatatypeJSON)
	}
	c.replyTyped(f, mcbp.StatusAccess, datatype, body)
	return true
}

func (c *conn) without(f *mcbp.Frame, p privilege) bool {
	return c.denied(f, fmt.Appendf(nil, `{"error":{"context":"Authorization failure: can't execute %s operation without the %s privilege","ref":"%s"}}`,
		requestName(f.Opcode), p, reference()))
}

// requestName is a request's name in refusals.
func requestName(op mcbp.Opcode) string {
	switch op {
	case mcbp.OpSetManifest:
		return "COLLECTIONS_SET_MANIFEST"
	case mcbp.OpGetAllVBSeqnos:
		return "GET_ALL_VB_SEQNOS"
	case mcbp.OpSetVBucket:
		return "SET_VBUCKET"
	case mcbp.OpGetMeta:
		return "GET_META"
	case mcbp.OpSetWithMeta:
		return "SET_WITH_META"
	case mcbp.OpAddWithMeta:
		return "ADD_WITH_META"
	case mcbp.OpDeleteWithMeta:
		return "DEL_WITH_META"
	}
	return mcbp.OpcodeName(op)
}

// needs is the privilege that a request takes; ok is false for unknown requests.
func needs(op mcbp.Opcode) (p privilege, keyed, ok bool) {
	switch op {
	case mcbp.OpGet, mcbp.OpGetQ, opGetK, opGetKQ, mcbp.OpGetReplica:
		return privRead, true, true
	case mcbp.OpSet, mcbp.OpSetQ, opReplace, opReplaceQ:
		return privUpsert, true, true
	case mcbp.OpAdd, mcbp.OpAddQ:
		return privInsert, true, true
	case mcbp.OpDelete, mcbp.OpDeleteQ:
		return privDelete, true, true
	case mcbp.OpGetMeta:
		return privMetaRead, true, true
	case mcbp.OpSetWithMeta, mcbp.OpSetQWithMeta, mcbp.OpAddWithMeta, mcbp.OpAddQWithMeta,
		mcbp.OpDeleteWithMeta, mcbp.OpDeleteQWithMeta:
		return privMeta, true, true
	case mcbp.OpGetAllVBSeqnos:
		return privMetaRead, false, true
	case mcbp.OpDcpOpen, mcbp.OpDcpControl, mcbp.OpDcpStreamReq, mcbp.OpDcpCloseStream, mcbp.OpDcpBufferAck, mcbp.OpDcpNoop,
		mcbp.OpDcpFailoverLog, mcbp.OpDcpAddStream, mcbp.OpDcpSnapshotMarker, mcbp.OpDcpMutation, mcbp.OpDcpDeletion,
		mcbp.OpDcpExpiration, mcbp.OpDcpSetVBucketState, mcbp.OpDcpSystemEvent, mcbp.OpDcpStreamEnd, mcbp.OpDcpSeqnoAdvanced, mcbp.OpDcpFlush:
		return privProducer, false, true
	case mcbp.OpSetVBucket, mcbp.OpDelVBucket, mcbp.OpSetManifest, mcbp.OpGetVBucket:
		return privManage, false, true
	case opObserveSeqno:
		return privRead, false, true
	case mcbp.OpStat:
		return privStats, false, true
	case opGetConfig, mcbp.OpGetManifest, mcbp.OpGetCollectionID, mcbp.OpGetScopeID, opGetRandom, opObserve:
		return "", false, true
	}
	return "", false, false
}

// allowed checks a request of a user; served is false when it was answered, and
// then more says whether the connection stays.
func (c *conn) allowed(nb *nodeBucket, f *mcbp.Frame) (served, more bool) {
	p, keyed, known := needs(f.Opcode)
	if !known {
		if c.n.c.rel < rel65 {
			return false, c.denied(f, nil)
		}
		c.reply(f, mcbp.StatusUnknown, 0, nil, nil, nil)
		return false, true
	}
	if c.user == nil {
		return false, c.stranger(f, p)
	}
	if nb == nil || nb.gone.Load() {
		if !c.has(mcbp.FeatureXerror) {
			return false, false
		}
		c.reply(f, mcbp.StatusNoBucket, 0, nil, nil, nil)
		return false, true
	}
	bucket := nb.b.cfg.Name
	switch {
	case p == "" || c.user.may(p, bucket):
		return true, true
	case f.Opcode == mcbp.OpGetVBucket && c.user.mayEnter(bucket):
		return true, true
	case p == privProducer && c.user.somewhere(p, bucket):
		return true, true
	case keyed:
		return c.allowedKey(nb, f, p)
	case f.Opcode == mcbp.OpGetAllVBSeqnos && f.ExtLen == 8:
		if s, col, ok := nb.b.names(binary.BigEndian.Uint32(f.Extras()[4:])); ok && c.user.mayIn(p, nb.b, s, col) {
			return true, true
		}
	case p == privStats && c.user.mayEnter(bucket):
		return true, true
	}
	return false, c.without(f, p)
}

// allowedKey checks a request by the collection of its key.
func (c *conn) allowedKey(nb *nodeBucket, f *mcbp.Frame, p privilege) (served, more bool) {
	coll, _, ok := c.key(f)
	if !ok {
		return false, true
	}
	s, col, known := nb.b.names(coll)
	switch {
	case !known && !c.user.may(p, nb.b.cfg.Name):
		// Who may not see the manifest does not learn its uid.
		c.unknownCollection(f, 0)
		return false, true
	case known && c.user.mayIn(p, nb.b, s, col):
		return true, true
	}
	return false, c.without(f, p)
}

// stranger answers a request before login.
func (c *conn) stranger(f *mcbp.Frame, p privilege) bool {
	if !c.has(mcbp.FeatureXerror) {
		return false
	}
	body := fmt.Appendf(nil, `{"error":{"context":"An exception occurred. command: [%s]","ref":"%s"}}`, requestName(f.Opcode), reference())
	if c.n.c.rel >= rel65 {
		body = fmt.Appendf(nil, `{"error":{"context":"Authorization failure: can't execute %s operation without the %s privilege","ref":"%s"}}`, requestName(f.Opcode), p, reference())
	}
	c.replyTyped(f, mcbp.StatusAccess, 0, body)
	return true
}

// mayStream checks that the user may stream what a filter names, or everything.
func (c *conn) mayStream(colls []uint32, scope *uint32) *refusal {
	nb := c.bucket.Load()
	if c.user == nil || nb == nil || c.user.may(privProducer, nb.b.cfg.Name) {
		return nil
	}
	no := &refusal{status: mcbp.StatusAccess}
	if scope != nil || len(colls) == 0 {
		return no
	}
	for _, id := range colls {
		s, col, ok := nb.b.names(id)
		if !ok || !c.user.mayIn(privProducer, nb.b, s, col) {
			return no
		}
	}
	return nil
}

// names finds a collection's names by its id.
func (b *Bucket) names(id uint32) (scope, collection string, ok bool) {
	m := b.manifest.Load()
	i, j := m.collection(id)
	if i < 0 {
		return "", "", false
	}
	return m.Scopes[i].Name, m.Scopes[i].Collections[j].Name, true
}
