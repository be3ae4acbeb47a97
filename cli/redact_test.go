package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cbpump/cbpump/pump"
)

func redacting(key string) (*console, *bytes.Buffer, *bytes.Buffer) {
	var said, out bytes.Buffer
	p := &Process{Name: "cbtransfer", Stderr: &said, Stdout: &out, LookupEnv: func(name string) (string, bool) { return key, name == redactKeyEnv }}
	return newConsole(p, &common{redact: true, json: true}), &said, &out
}

// No key gets through, whatever it holds and wherever it is said, and the same key
// has the same hash everywhere.
func TestNoKeyGetsThrough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const planted = "plAnted"
		key := append(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "before"), planted...)
		key = append(key, rapid.SampledFrom([]string{"", "</ud>", "<ud>", "\"", "\\", "\n", "\xff", "<ud-hash>", "é", "\u2028"}).Draw(t, "middle")...)
		key = append(key, planted...)
		say, said, out := redacting("k")
		say.full = rapid.Bool().Draw(t, "full")
		pad := strings.Repeat("x", rapid.IntRange(0, shortError).Draw(t, "pad"))
		err := &pump.Error{Code: "c", Op: pad + "write " + pump.UserData(key) + " and " + pump.UserData(key)}
		say.Error(err)
		say.Emit(rejectedOf(pump.Mutation, 5, key, err))
		say.logger(0).Warn("look", "reason", err)
		say.Status(userData(key))
		say.Notice("%s", userData(key))
		say.Warn(userData(key))
		if all := said.String() + out.String(); strings.Contains(all, planted) {
			t.Fatalf("the key %q shows:\n%s", key, all)
		}
		hash := say.redact.text(userData(key))
		for line := range strings.Lines(out.String()) {
			var doc struct {
				Type, Key, Message string
				KeyB64             string `json:"key_b64"`
			}
			if err := json.Unmarshal([]byte(line), &doc); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if doc.KeyB64 != "" || doc.Type == "rejected" && doc.Key != hash || doc.Type == "error" && !strings.Contains(doc.Message, hash) {
				t.Fatalf("the hash is not %s in %s", hash, line)
			}
		}
		if !strings.Contains(said.String(), hash) {
			t.Fatalf("no hash %s in %s", hash, said)
		}
	})
}

func TestHashesAreKeyed(t *testing.T) {
	text := func(key string) string {
		say, said, _ := redacting(key)
		say.Notice("%s", userData([]byte("order::4711")))
		return said.String()
	}
	seen := map[string]bool{}
	for _, key := range []string{"a", "a", "b", "", ""} {
		seen[text(key)] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d different texts, want 4: a key of its own gives the same hashes, none gives others in each run", len(seen))
	}
}

func TestWithoutRedactKeysAreSaid(t *testing.T) {
	var said bytes.Buffer
	say := newConsole(&Process{Name: "x", Stderr: &said}, &common{})
	say.Notice("%s", userData([]byte("order::4711")))
	if said.String() != "x: <ud>order::4711</ud>\n" {
		t.Errorf("said %s", &said)
	}
}

// A mark that something cut off is redacted to the end of its line.
func TestCutMarks(t *testing.T) {
	say, _, _ := redacting("k")
	if got := say.redact.text("a <ud>secr\nnext line"); strings.Contains(got, "secr") || !strings.HasSuffix(got, "\nnext line") {
		t.Errorf("text: %q", got)
	}
	if got := string(say.redact.line([]byte(`{"message":"a \u003cud\u003esecr","code":"x"}`))); strings.Contains(got, "secr") || !json.Valid([]byte(got)) || !strings.Contains(got, `"code":"x"`) {
		t.Errorf("line: %s", got)
	}
}
