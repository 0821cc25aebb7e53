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

// RoundTripper returns a transport that runs s in-process, whatever the URL's host. A request lives in one goroutine that
// ends with the answer's body, its closing, or the request's context. Of httptrace it calls what tells a request
// that left from one that did not: GotConn and WroteRequest.
func (s *Server) RoundTripper() http.RoundTripper { return transport{s} }

type transport struct{ server *Server }

// RoundTrip returns the context's error when the context ends first, io.ErrUnexpectedEOF where the connection is cut.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		_ = req.Body.Close() // read to its end, or broken
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
			err = caller.Err() // which is why the handler gave up
		}
		_ = in.CloseWithError(err)
		w.begin(0)
	}()

	<-w.begun // at the latest when the context ends, for the handler minds it
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

// connect plays the connection: the dial error of a "refused" fault, or the trace of a request that was written.
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

// refuses reports whether a "refused" fault hits a token request before it arrives.
func (s *Server) refuses(body []byte) bool {
	var req tokenRequest
	_ = json.Unmarshal(body, &req) // what is not JSON has no client
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault.Kind == FaultRefused && s.takeFault(req.ClientID).Kind == FaultRefused
}

// serve runs the handler and returns what the reader of the body finds at its end.
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
	w.WriteHeader(http.StatusOK) // unless the handler wrote one
	return nil
}

// responseWriter hands a handler's answer to the reader as it is written. One goroutine writes it.
type responseWriter struct {
	header http.Header
	body   *io.PipeWriter
	once   sync.Once
	begun  chan struct{} // closed when status and sent are set
	status int           // 0: cut without an answer
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
