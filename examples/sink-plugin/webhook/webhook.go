// Package webhook is an example of a sink that somebody else wrote: it posts
// each batch of items as JSON to a URL. It uses the public packages only.
package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/cbpump/cbpump/pump"
)

// Options are declared once; the command line, the help and the documentation
// come from here.
type Options struct {
	Lanes   int           `opt:"lanes" default:"4" help:"requests under way at once"`
	Timeout time.Duration `opt:"timeout" default:"30s" help:"how long one request may take"`
	Token   string        `opt:"token" secret:"true" help:"bearer token"`
}

// Plugin is what a program registers: webhook://host:port/path.
func Plugin() pump.SinkPlugin[Options] {
	return pump.SinkPlugin[Options]{
		Schemes: []string{"webhook"},
		Summary: "posts items as JSON to a URL",
		New: func(_ context.Context, t pump.Target, o Options) (pump.Sink, error) {
			return &Sink{url: "http:" + t.Rest, options: o, client: &http.Client{Timeout: o.Timeout}}, nil
		},
	}
}

// Sink posts to one URL.
type Sink struct {
	url     string
	options Options
	client  *http.Client
}

// Lanes implements pump.Sink.
func (s *Sink) Lanes(_ context.Context, want int) ([]pump.Lane, error) {
	n := max(1, s.options.Lanes)
	if want > 0 {
		n = want
	}
	lanes := make([]pump.Lane, n)
	for i := range lanes {
		lanes[i] = &lane{sink: s}
	}
	return lanes, nil
}

// Close implements pump.Sink.
func (s *Sink) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

// Item is one element of the array that is posted.
type Item struct {
	Op    string `json:"op"`
	Key   []byte `json:"key"` // base64, as are all bytes in Go's JSON
	Value []byte `json:"value,omitempty"`
	Flags uint32 `json:"flags,omitempty"`
}

type lane struct {
	sink *Sink
	body bytes.Buffer
}

// Write posts the batch in one request, so all its items share one fate.
func (l *lane) Write(ctx context.Context, b *pump.Batch) error {
	if b.Len() == 0 {
		return nil
	}
	items := make([]Item, b.Len())
	for i := range b.Items {
		it := &b.Items[i]
		items[i] = Item{Op: it.Op.String(), Key: it.Key, Value: it.Value, Flags: it.Flags}
	}
	l.body.Reset()
	if err := json.NewEncoder(&l.body).Encode(items); err != nil {
		return fmt.Errorf("encode a batch: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.sink.url, bytes.NewReader(l.body.Bytes()))
	if err != nil {
		return pump.Usagef("webhook: not a URL")
	}
	req.Header.Set("Content-Type", "application/json")
	if l.sink.options.Token != "" {
		req.Header.Set("Authorization", "Bearer "+l.sink.options.Token)
	}
	resp, err := l.sink.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// Whether the items arrived is not known: the engine sends them again.
		b.SettleRest(pump.Retry, err)
		return nil
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)); err != nil {
		b.SettleRest(pump.Retry, err)
		return nil
	}
	status := fmt.Errorf("%s answered %s", l.sink.url, resp.Status)
	switch {
	case resp.StatusCode < 300:
		b.SettleRest(pump.Done, nil)
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return &pump.Error{Class: pump.ClassDenied, Code: "webhook-denied", Err: status, Hint: "Check -x token=…"}
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= 500:
		b.SettleRest(pump.Retry, status)
	default:
		b.SettleRest(pump.Rejected, status)
	}
	return nil
}

func (l *lane) Close() error { return nil }
