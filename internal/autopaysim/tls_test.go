package autopaysim

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestSelfSigned(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		hosts []string
		dial  string // the host that the client expects
		good  bool
	}{
		"name by default":        {nil, "localhost", true},
		"address by default":     {nil, "127.0.0.1", true},
		"IPv6 by default":        {nil, "::1", true},
		"another name":           {nil, "example.com", false},
		"given name":             {[]string{"example.com"}, "example.com", true},
		"given name, not others": {[]string{"example.com"}, "127.0.0.1", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cert, ca, err := SelfSigned(test.hosts...)
			if err != nil {
				t.Fatal(err)
			}
			s := New(Options{})
			server := httptest.NewUnstartedServer(s)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
			server.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are expected
			server.StartTLS()
			t.Cleanup(server.Close)
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(ca) {
				t.Fatal("no certificate in the PEM")
			}
			transport := &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, ServerName: test.dial},
			}
			t.Cleanup(transport.CloseIdleConnections)
			got := request(t, transport, server.URL, tokenBody(t))
			if (got.status == http.StatusOK) != test.good {
				t.Errorf("status %d, want success %v", got.status, test.good)
			}
			if ip := net.ParseIP(test.dial); test.good && ip != nil && len(cert.Leaf.IPAddresses) != 2 {
				t.Errorf("addresses %v", cert.Leaf.IPAddresses)
			}
		})
	}
}
