package autopaysim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"syscall"
)

// RoundTripper returns a transport that runs s in-process for any host. Each request has a goroutine, which ends when the
// answer's body has been read or closed, or with the request's context. It calls GotConn and WroteRequest of httptrace,
// which show whether a request was sent.
func (s *Server) RoundTripper() http.RoundTripper { return transport{s} }

type transport struct{ server *Server }

// RoundTrip returns the context's error if the context ends first, and io.ErrUnexpectedEOF if the connection is cut.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		_ = req.Body.Close() // it has been read, or is broken
		if err != nil {
			return nil, err
		}
	}
	caller := req.Context()
	if err := caller.Err(); err != nil {
		return nil, err
	}
	if err := t.connect(req, body); err != nil {
		return nil, err
	}

	ctx, leave := context.WithCancel(caller)
	r := req.Clone(ctx)
	r.Body, r.RequestURI = io.NopCloser(bytes.NewReader(body)), req.URL.RequestURI()
	out, in := io.Pipe()
	w := &responseWriter{header: http.Header{}, body: in, begun: make(chan struct{})}
	stop := context.AfterFunc(caller, func() { _ = in.CloseWithError(caller.Err()) })
	go func() {
		defer leave()
		err := t.serve(w, r)
		if stop(); err != nil && caller.Err() != nil {
			err = caller.Err() // that is why the handler gave up
		}
		_ = in.CloseWithError(err)
		w.begin(0)
	}()

	<-w.begun // at the latest when the context ends, because the handler watches it
	if err := caller.Err(); err != nil {
		leave()
		return nil, err
	}
	if w.status == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return &http.Response{
		Status:     strconv.Itoa(w.status) + " " + http.StatusText(w.status),
		StatusCode: w.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, ContentLength: -1, Request: req,
		Body: &responseBody{PipeReader: out, leave: leave},
	}, nil
}

// connect simulates the connection: a dial error for a "refused" fault, otherwise the trace of a request that was sent.
func (t transport) connect(req *http.Request, body []byte) error {
	trace := httptrace.ContextClientTrace(req.Context())
	if trace == nil {
		trace = &httptrace.ClientTrace{}
	}
	if req.URL.Path == TokenPath && t.server.refuses(body) {
		return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	if trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	if trace.WroteRequest != nil {
		trace.WroteRequest(httptrace.WroteRequestInfo{})
	}
	return nil
}

// refuses reports whether a "refused" fault affects a token request.
func (s *Server) refuses(body []byte) bool {
	var req tokenRequest
	_ = json.Unmarshal(body, &req) // a body that is not JSON has no client
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault.Kind == FaultRefused && s.takeFault(req.ClientID).Kind == FaultRefused
}

// serve runs the handler and returns the error that the reader of the body gets at its end.
func (t transport) serve(w *responseWriter, r *http.Request) (err error) {
	defer func() {
		if v := recover(); v != nil {
			if cut, ok := v.(error); !ok || !errors.Is(cut, http.ErrAbortHandler) {
				panic(v)
			}
			err = io.ErrUnexpectedEOF
		}
	}()
	t.server.ServeHTTP(w, r)
	w.WriteHeader(http.StatusOK) // if the handler has not
	return nil
}

// responseWriter passes a handler's answer to the reader as it is written. One goroutine writes it.
type responseWriter struct {
	header http.Header
	body   *io.PipeWriter
	once   sync.Once
	begun  chan struct{} // closed once status and sent are set
	status int           // 0: the connection was cut without an answer
	sent   http.Header
}

func (w *responseWriter) begin(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.begun)
	})
}

func (w *responseWriter) Header() http.Header         { return w.header }
func (w *responseWriter) WriteHeader(status int)      { w.begin(status) }
func (w *responseWriter) Flush()                      {}
func (w *responseWriter) Write(p []byte) (int, error) { w.begin(http.StatusOK); return w.body.Write(p) }

// responseBody ends the handler when it is closed.
type responseBody struct {
	*io.PipeReader
	leave context.CancelFunc
}

func (b *responseBody) Close() error {
	b.leave()
	return b.PipeReader.Close()
}
