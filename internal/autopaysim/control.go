package autopaysim

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const maxLifetime = 10 * 365 * 86400 // seconds; the most that the control API accepts

// routeControl adds the control API, which gives other processes what this package's methods do.
func (s *Server) routeControl() {
	s.mux.HandleFunc("GET /sim/stats", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, s.Stats())
	})
	s.mux.HandleFunc("GET /sim/log", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, append([]Entry{}, s.Log()...))
	})
	control(s, "POST /sim/reset", func(struct{}) error {
		s.Reset()
		return nil
	})
	control(s, "POST /sim/fault", func(f Fault) error {
		if err := f.Validate(); err != nil {
			return err
		}
		s.SetFault(f)
		return nil
	})
	control(s, "POST /sim/lifetime", func(req struct {
		Seconds int64 `json:"seconds"`
	},
	) error {
		if req.Seconds < 1 || req.Seconds > maxLifetime {
			return fmt.Errorf("seconds: must be from 1 to %d", maxLifetime)
		}
		s.SetLifetime(time.Duration(req.Seconds) * time.Second)
		return nil
	})
	control(s, "POST /sim/client", func(req struct {
		ClientID     string  `json:"client_id"`
		ClientSecret *string `json:"client_secret"`
	},
	) error {
		if req.ClientID == "" {
			return errors.New("client_id: is required")
		}
		if req.ClientSecret == nil {
			return errors.New("client_secret: is required; \"\" removes the client")
		}
		s.SetClient(req.ClientID, *req.ClientSecret)
		return nil
	})
	control(s, "POST /sim/revoke", func(req struct {
		Token string `json:"token"`
	},
	) error {
		if req.Token == "" {
			return errors.New("token: is required")
		}
		s.Revoke(req.Token)
		return nil
	})
}

// control routes a request whose JSON body (an empty one counts as {}) is a T, and applies it. The answer is 204, or
// 400 with the field that is wrong.
func control[T any](s *Server, pattern string, apply func(T) error) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var req T
		body := json.NewDecoder(io.LimitReader(r.Body, maxControlBody))
		body.DisallowUnknownFields()
		err := body.Decode(&req)
		if err == nil || errors.Is(err, io.EOF) {
			err = apply(req)
		}
		if err != nil {
			writeJSON(w, http.StatusBadRequest, errorAnswer{"invalid_request", describe(err)})
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

// describe describes a wrong control request by field and rule. It never shows the value.
func describe(err error) string {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return cmp.Or(strings.TrimPrefix(wrongType.Field, "plain."), "body") + ": wrong type"
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}
