package cluster

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
)

// scramHash is the hash of each SCRAM mechanism we know.
var scramHash = map[string]func() hash.Hash{
	"SCRAM-SHA512": sha512.New,
	"SCRAM-SHA256": sha256.New,
	"SCRAM-SHA1":   sha1.New,
}

// maxScramIterations bounds the work that a server can ask for.
const maxScramIterations = 4 << 20

// errServerProof means that the server said yes without proving that it knows
// the password: it may be another server, which learns nothing from our proof.
var errServerProof = errors.New("the node did not prove that it knows the password")

// scram is one login with SCRAM (RFC 5802), without channel binding: the password
// never leaves this process, and the server has to prove that it knows it too.
type scram struct {
	hash      func() hash.Hash
	password  secret
	firstBare string
	nonce     string
	signature []byte // what the server must answer at the end
}

// newNonce returns 24 random bytes as text.
func newNonce() string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return base64.StdEncoding.EncodeToString(b[:])
}

// newScram begins a login; nonce must never have been used before.
func newScram(mechanism, user string, password secret, nonce string) *scram {
	escaped := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(user)
	return &scram{hash: scramHash[mechanism], password: password, nonce: nonce, firstBare: "n=" + escaped + ",r=" + nonce}
}

// first is the client's first message.
func (s *scram) first() []byte { return []byte("n,," + s.firstBare) }

// final answers the server's first message: salt, iterations, and its nonce
// behind ours.
func (s *scram) final(serverFirst []byte) ([]byte, error) {
	attrs := strings.Split(string(serverFirst), ",")
	if len(attrs) < 3 {
		return nil, errors.New("the first SCRAM message of the node is incomplete")
	}
	nonce, okNonce := strings.CutPrefix(attrs[0], "r=")
	salt64, okSalt := strings.CutPrefix(attrs[1], "s=")
	count, okCount := strings.CutPrefix(attrs[2], "i=")
	if !okNonce || !okSalt || !okCount {
		return nil, errors.New("the first SCRAM message of the node lacks its nonce, salt or iterations")
	}
	if !strings.HasPrefix(nonce, s.nonce) || len(nonce) == len(s.nonce) {
		return nil, errors.New("the node answers SCRAM with a nonce that is not for us")
	}
	salt, err := base64.StdEncoding.DecodeString(salt64)
	if err != nil || len(salt) == 0 {
		return nil, errors.New("the node answers SCRAM with a malformed salt")
	}
	iterations, err := strconv.Atoi(count)
	if err != nil || iterations < 1 || iterations > maxScramIterations {
		return nil, fmt.Errorf("the node asks for %s SCRAM iterations; 1 to %d are accepted", clip(count, 20), maxScramIterations)
	}
	salted, err := pbkdf2.Key(s.hash, s.password.reveal(), salt, iterations, s.hash().Size())
	if err != nil {
		return nil, errors.New("the SCRAM key cannot be computed")
	}
	withoutProof := "c=biws,r=" + nonce
	message := []byte(s.firstBare + "," + string(serverFirst) + "," + withoutProof)
	clientKey := s.mac(salted, []byte("Client Key"))
	h := s.hash()
	h.Write(clientKey)
	signature := s.mac(h.Sum(nil), message)
	for i := range clientKey {
		clientKey[i] ^= signature[i]
	}
	s.signature = s.mac(s.mac(salted, []byte("Server Key")), message)
	return []byte(withoutProof + ",p=" + base64.StdEncoding.EncodeToString(clientKey)), nil
}

// verify checks the server's last message; any doubt is errServerProof.
func (s *scram) verify(serverFinal []byte) error {
	v, ok := bytes.CutPrefix(serverFinal, []byte("v="))
	if !ok || s.signature == nil {
		return errServerProof
	}
	v, _, _ = bytes.Cut(v, []byte(","))
	got, err := base64.StdEncoding.DecodeString(string(v))
	if err != nil || !hmac.Equal(got, s.signature) {
		return errServerProof
	}
	return nil
}

func (s *scram) mac(key, message []byte) []byte {
	m := hmac.New(s.hash, key)
	m.Write(message)
	return m.Sum(nil)
}
