package cluster

import (
	"fmt"
	"strings"
)

// secret holds a password where fmt, reflection printers and encoders see only
// an address: they do not call methods on unexported fields (invariant 9).
type secret func() string

func newSecret(s string) secret {
	if s == "" {
		return nil
	}
	return func() string { return s }
}

func (s secret) reveal() string {
	if s == nil {
		return ""
	}
	return s()
}

// hidden is what stands in printed text for a secret: whether there is one, and
// nothing else about it.
func hidden(s string) string {
	if s == "" {
		return "none"
	}
	return "hidden"
}

// scrub takes secrets out of text that a server sent, since some echo what they
// were given; also the beginning of one where the text breaks off.
func scrub(text string, secrets ...string) string {
	const telling = 3 // bytes of a secret that are not there by chance
	for _, s := range secrets {
		if s == "" {
			continue
		}
		text = strings.ReplaceAll(text, s, "***")
		for n := len(s) - 1; n >= telling; n-- {
			if kept, cut := strings.CutSuffix(text, s[:n]); cut {
				text = kept + "***"
				break
			}
		}
	}
	return text
}

func (cfg Config) redacted() string {
	return fmt.Sprintf("cluster.Config{role %s, user %q, password %s}", cfg.Role, cfg.Username, hidden(cfg.Password))
}

// Format prints the configuration without its password under every verb.
func (cfg Config) Format(s fmt.State, _ rune) { fmt.Fprint(s, cfg.redacted()) }

// MarshalText is what encoders and JSON loggers print: no password either.
func (cfg Config) MarshalText() ([]byte, error) { return []byte(cfg.redacted()), nil }

func (cfg KVConfig) redacted() string {
	return fmt.Sprintf("cluster.KVConfig{%s node %s, bucket %q, password %s, user %q, password %s}",
		cfg.Role, cfg.Addr, cfg.Bucket, hidden(cfg.Password), cfg.Username, hidden(cfg.UserPassword))
}

// Format prints the configuration without its password under every verb.
func (cfg KVConfig) Format(s fmt.State, _ rune) { fmt.Fprint(s, cfg.redacted()) }

// MarshalText is what encoders and JSON loggers print: no password either.
func (cfg KVConfig) MarshalText() ([]byte, error) { return []byte(cfg.redacted()), nil }
