package simcluster

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/cbpump/cbpump/mcbp"
)

// sasl serves SASL_AUTH and SASL_STEP. The user is a bucket. A refused login
// leaves the connection where it was, which is the default bucket at first.
func (c *conn) sasl(f *mcbp.Frame) {
	mech, value := string(f.Key()), f.Value()
	challenge := c.challenge
	c.challenge = nil
	switch {
	case f.Opcode == mcbp.OpSASLAuth && mech == "PLAIN":
		parts := bytes.Split(value, []byte{0})
		if len(parts) != 3 {
			c.loggedIn(f, nil)
			return
		}
		nb := c.n.bucket(string(parts[1]))
		if nb != nil && !hmac.Equal(parts[2], []byte(nb.b.cfg.Password)) {
			nb = nil
		}
		c.loggedIn(f, nb)
	case f.Opcode == mcbp.OpSASLAuth && mech == "CRAM-MD5":
		var r [8]byte
		rand.Read(r[:])
		c.challenge = []byte(hex.EncodeToString(r[:]))
		if c.n.c.family == 2 {
			c.challenge = fmt.Appendf(nil, "<%x.0@%s>", r, c.n.c.cfg.Host)
		}
		c.reply(f, mcbp.StatusAuthContinue, 0, nil, nil, c.challenge)
	case f.Opcode == mcbp.OpSASLStep && mech == "CRAM-MD5" && challenge != nil:
		user, _, _ := bytes.Cut(value, []byte{' '})
		nb := c.n.bucket(string(user))
		if nb != nil && !hmac.Equal(value, mcbp.SASLCramMD5(string(user), nb.b.cfg.Password, challenge)) {
			nb = nil
		}
		c.loggedIn(f, nb)
	default:
		c.loggedIn(f, nil)
	}
}

func (c *conn) loggedIn(f *mcbp.Frame, nb *nodeBucket) {
	if nb == nil {
		c.reply(f, mcbp.StatusAuthError, 0, nil, nil, []byte("Auth failure"))
		return
	}
	c.bucket.Store(nb)
	var body []byte
	if c.n.c.family < 4 {
		body = []byte("Authenticated")
	}
	c.reply(f, mcbp.StatusOK, 0, nil, nil, body)
}
