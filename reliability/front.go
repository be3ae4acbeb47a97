package reliability

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"

	"github.com/cbpump/cbpump/reliability/faultproxy"
	"github.com/cbpump/cbpump/simcluster"
)

// Front is a simulated cluster of one node whose data port is reached through a
// faulty proxy: its REST documents name the proxy's port.
type Front struct {
	URL   string
	Proxy *faultproxy.Proxy
	rest  *httptest.Server
}

// NewFront puts a proxy before a cluster of one node.
func NewFront(c *simcluster.Cluster, fault func(n int) faultproxy.Fault) (*Front, error) {
	node := c.Nodes()[0]
	p, err := faultproxy.Start(node.KV(), fault)
	if err != nil {
		return nil, err
	}
	f := &Front{Proxy: p}
	f.rest = httptest.NewUnstartedServer(nil)
	back := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: node.REST()})
		},
		ModifyResponse: func(r *http.Response) error {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			for _, pair := range [][2]string{{node.KV(), p.Addr()}, {node.REST(), f.rest.Listener.Addr().String()}} {
				body = bytes.ReplaceAll(body, port(pair[0]), port(pair[1]))
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			r.ContentLength = int64(len(body))
			r.Header.Set("Content-Length", strconv.Itoa(len(body)))
			return nil
		},
	}
	f.rest.Config.Handler = back
	f.rest.Start()
	f.URL = f.rest.URL
	return f, nil
}

func port(addr string) []byte {
	_, p, _ := net.SplitHostPort(addr)
	return []byte(p)
}

// Close ends the proxy and the documents' server.
func (f *Front) Close() {
	f.rest.Close()
	_ = f.Proxy.Close()
}
