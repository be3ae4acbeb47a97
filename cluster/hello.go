package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cbpump/cbpump/mcbp"
	"github.com/cbpump/cbpump/pump"
)

// agent is how servers name our connections in their logs.
const agent = "cbpump"

// askable are the features that KVConfig.Features may hold. What is not here
// changes the protocol into something that this code does not read (0x0f tracing
// and 0x10 other magic bytes, 0x0c and 0x0d requests by the server, 0x0e answers
// out of order) or makes the server refuse HELLO as a whole (0x05 beside 0x03).
var askable = []uint16{
	featureNoDelay, featureSeqno, mcbp.FeatureXattr, mcbp.FeatureXerror, mcbp.FeatureSelect,
	mcbp.FeatureSnappy, mcbp.FeatureJSON, mcbp.FeatureCollections,
}

const (
	featureNoDelay = 0x03
	featureSeqno   = 0x04 // vbucket uuid and seqno in the answers to writes
)

// checkFeatures returns what to ask for: extended errors first of all, without
// which servers close the connection where they would answer 0x24 or 0x08.
func (cfg *KVConfig) checkFeatures() ([]uint16, error) {
	ask := []uint16{mcbp.FeatureXerror, mcbp.FeatureSelect}
	for _, f := range cfg.Features {
		if !slices.Contains(askable, f) {
			return nil, pump.Usagef("feature 0x%02x of HELLO is not supported", f)
		}
		if !slices.Contains(ask, f) {
			ask = append(ask, f)
		}
	}
	slices.Sort(ask)
	return ask, nil
}

// Has reports that the node granted a feature (mcbp.FeatureXattr, …) at login.
// Nothing may be assumed that was not granted.
func (c *Conn) Has(feature uint16) bool { return slices.Contains(c.granted, feature) }

// NodeVersion is the node's version as the topology or, from 5.0 on, the node itself
// told; the zero Version where neither did.
func (c *Conn) NodeVersion() Version { return c.version }

// prepare brings a new connection to where requests can be sent: HELLO, login,
// bucket.
//
// A node of an unknown version is asked which kind it is: HELLO is unknown to
// the oldest, extended errors are granted from 5.0 on, and only servers from 5.0
// on offer SCRAM without CRAM-MD5. A node that is known to be older is not sent a
// HELLO at all: 4.0 treats datatypes differently after one.
func (c *Conn) prepare(ctx context.Context, cfg *KVConfig) error {
	features, err := cfg.checkFeatures()
	if err != nil {
		return err
	}
	c.version = cfg.Version
	unknown := cfg.Version == Version{}
	modern := cfg.Version.AtLeast(5, 0)
	if modern || unknown && (cfg.Username != "" || len(cfg.Features) > 0) {
		if err := c.hello(ctx, features); err != nil {
			return err
		}
		modern = modern || c.Has(mcbp.FeatureXerror)
	}
	if modern {
		return c.prepareUser(ctx, cfg, features, nil)
	}
	if cfg.Bucket == "" || cfg.Bucket == "default" && cfg.Password == "" {
		return nil
	}
	offered, err := c.mechanisms(ctx)
	if err != nil {
		return err
	}
	if !onlyScram(offered) {
		return c.loginOld(ctx, bucketAccount(cfg), offered)
	}
	if err := c.hello(ctx, features); err != nil {
		return err
	}
	return c.prepareUser(ctx, cfg, features, offered)
}

// prepareUser is prepare for nodes from 5.0 on.
func (c *Conn) prepareUser(ctx context.Context, cfg *KVConfig, features []uint16, offered []string) (err error) {
	a := userAccount(cfg)
	switch {
	case a.user == "": // nothing to log in as; a client certificate may say it all
	case cfg.Username == "" && cfg.TLS != nil && len(cfg.TLS.Certificates) > 0:
	case cfg.Username == "" && cfg.Password == "":
		return &pump.Error{
			Class: pump.ClassDenied, Code: "kv-no-user", Op: c.name() + ": log in",
			Err:  errors.New("the node wants a user and a password, and none was given"),
			Hint: "Give the user and the password" + optionsOf(cfg.Role) + ".",
		}
	default:
		if offered == nil {
			if offered, err = c.mechanisms(ctx); err != nil {
				return err
			}
		}
		if err := c.loginUser(ctx, a, offered); err != nil {
			return err
		}
	}
	if cfg.Bucket != "" {
		if err := c.selectBucket(ctx, cfg.Bucket, a); err != nil {
			return err
		}
	}
	if c.version == (Version{}) {
		// Options differ between versions, and a wrong one closes the connection.
		// A node whose word is no version number stays unknown.
		if v, err := c.Version(ctx); err == nil {
			c.version = v
		} else if c.broken != nil {
			return err
		}
		if slices.Contains(features, mcbp.FeatureCollections) && c.version.AtLeast(7, 0) {
			return c.hello(ctx, features)
		}
	}
	return nil
}

// hello asks for features. It replaces what an earlier HELLO was granted.
//
// Collections are asked for from 7.0 on only: 6.5 and 6.6 grant them as well, and
// mean a preview of theirs that never worked with data of others.
func (c *Conn) hello(ctx context.Context, features []uint16) error {
	const op = "negotiate features (HELLO)"
	ask := slices.Clone(features)
	if !c.version.AtLeast(7, 0) {
		ask = slices.DeleteFunc(ask, func(f uint16) bool { return f == mcbp.FeatureCollections })
	}
	opaque := c.NextOpaque()
	f, err := c.RoundTrip(ctx, mcbp.AppendHello(nil, opaque, c.agent, ask...), opaque)
	if err != nil {
		return err
	}
	switch f.Status() {
	case mcbp.StatusOK:
	case mcbp.StatusUnknown, mcbp.StatusNotSupported:
		return nil // an old server: nothing is granted
	default:
		return c.Refused(op, &f)
	}
	granted, err := mcbp.ParseHello(f.Value())
	if err != nil {
		return c.Explain(ctx, op, err)
	}
	for _, g := range granted {
		if !slices.Contains(ask, g) {
			return &pump.Error{Code: "kv-protocol", Op: c.name() + ": " + op, Err: fmt.Errorf("the node turned on feature 0x%02x, which was not asked for", g)}
		}
	}
	c.granted = granted
	return nil
}

func (c *Conn) selectBucket(ctx context.Context, bucket string, a account) error {
	op := "select bucket " + quote(bucket)
	f, err := c.ask(ctx, mcbp.OpSelectBucket, 0, nil, []byte(bucket), nil)
	if err != nil {
		return err
	}
	e := &pump.Error{Code: "kv-denied", Class: pump.ClassDenied, Op: c.name() + ": " + op, Err: &StatusError{Status: f.Status()}}
	switch f.Status() {
	case mcbp.StatusOK:
		return nil
	case mcbp.StatusAccess:
		e.Hint = fmt.Sprintf("User %s may not use this bucket, or there is no such bucket. Give the user a role on it.", quote(a.user))
	case mcbp.StatusNotFound:
		e.Class, e.Code = pump.ClassUsage, "no-bucket"
		e.Err = fmt.Errorf("there is no such bucket on the node: %w", e.Err)
	default:
		return c.Refused(op, &f)
	}
	return e
}
