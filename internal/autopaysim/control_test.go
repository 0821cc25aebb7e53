package autopaysim

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestControl(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	post := func(path, body string) {
		t.Helper()
		if status, answer := call(t, s, http.MethodPost, "/sim/"+path, body); status != http.StatusNoContent {
			t.Fatalf("%s: %d %s", path, status, answer)
		}
	}
	post("client", `{"client_id":"shop","client_secret":"s"}`)
	post("lifetime", `{"seconds":60}`)
	g := obtain(t, s, "client_id", "shop", "client_secret", "s")
	if g.ExpiresIn != 60 {
		t.Errorf("expires_in %d, want 60", g.ExpiresIn)
	}
	post("revoke", `{"token":"`+g.AccessToken+`"}`)
	if s.Valid(g.AccessToken) {
		t.Error("still valid")
	}
	post("fault", `{"kind":"status","status":429,"header":{"Retry-After":["7"]},"times":1,"client_id":"shop","delay":"1ms"}`)
	want := Fault{Kind: FaultStatus, Status: 429, Header: http.Header{"Retry-After": {"7"}}, Times: 1, ClientID: "shop", Delay: time.Millisecond}
	if !reflect.DeepEqual(s.fault, want) {
		t.Errorf("fault %+v, want %+v", s.fault, want)
	}
	post("fault", `{}`)
	if !reflect.DeepEqual(s.fault, Fault{}) {
		t.Errorf("fault %+v, want none", s.fault)
	}

	_, body := call(t, s, http.MethodGet, "/sim/stats", "")
	for _, part := range []string{`"token_requests":1`, `"banned_clients":[]`, `"dead_tokens_seen":0`, `"shop":{"token_requests":1,"tokens_issued":1`} {
		if !strings.Contains(body, part) {
			t.Errorf("stats lack %s: %s", part, body)
		}
	}
	_, body = call(t, s, http.MethodGet, "/sim/log", "")
	var log []Entry
	if err := json.Unmarshal([]byte(body), &log); err != nil || len(log) != 1 || log[0].ClientID != "shop" || log[0].Status != 200 {
		t.Errorf("log %s: %v", body, err)
	}
	post("reset", "")
	if _, body = call(t, s, http.MethodGet, "/sim/log", ""); body != "[]\n" || s.Requests("") != 0 {
		t.Errorf("after reset: log %s, stats %+v", body, s.Stats())
	}
	post("client", `{"client_id":"shop","client_secret":""}`)
	if status, _ := call(t, s, http.MethodPost, TokenPath, tokenBody(t, "client_id", "shop", "client_secret", "s")); status != http.StatusUnauthorized {
		t.Errorf("a removed client: %d, want 401", status)
	}
}

func TestControlRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ path, body, want string }{
		"unknown fault field":    {"fault", `{"kind":"hang","kin":1}`, `unknown field "kin"`},
		"unknown kind":           {"fault", `{"kind":"nap"}`, "kind: must be one of status, "},
		"kind forgotten":         {"fault", `{"status":500}`, "kind: must be one of"},
		"fault type":             {"fault", `{"kind":5}`, "kind: wrong type"},
		"header type":            {"fault", `{"kind":"status","header":{"Retry-After":"7"}}`, "header: wrong type"},
		"delay":                  {"fault", `{"kind":"delay","delay":"soon"}`, "delay: must be a duration"},
		"delay type":             {"fault", `{"kind":"delay","delay":5}`, "delay: wrong type"},
		"negative delay":         {"fault", `{"kind":"delay","delay":"-1s"}`, "delay: must not"},
		"unknown lifetime field": {"lifetime", `{"second":5}`, `unknown field "second"`},
		"lifetime zero":          {"lifetime", ``, "seconds: must be from 1"},
		"lifetime too long":      {"lifetime", `{"seconds":9223372036854775807}`, "seconds: must be from 1"},
		"lifetime fraction":      {"lifetime", `{"seconds":1.5}`, "seconds: wrong type"},
		"client without ID":      {"client", `{"client_secret":"s3cret"}`, "client_id: is required"},
		"client without secret":  {"client", `{"client_id":"a"}`, "client_secret: is required"},
		"client secret type":     {"client", `{"client_id":"a","client_secret":{"s3cret":1}}`, "client_secret: wrong type"},
		"revoke nothing":         {"revoke", `{}`, "token: is required"},
		"reset with a field":     {"reset", `{"all":true}`, `unknown field "all"`},
		"not an object":          {"lifetime", `[1]`, "body: wrong type"},
		"not JSON":               {"fault", `kind=hang`, "invalid character"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := New(Options{})
			status, body := call(t, s, http.MethodPost, "/sim/"+test.path, test.body)
			var answer errorAnswer
			if err := json.Unmarshal([]byte(body), &answer); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if status != http.StatusBadRequest || answer.Error != "invalid_request" || !strings.HasPrefix(answer.Description, test.want) {
				t.Errorf("%d %s, want 400 with %s", status, body, test.want)
			}
			if strings.Contains(body, "s3cret") {
				t.Errorf("the value came back: %s", body)
			}
			if !reflect.DeepEqual(s.fault, Fault{}) || len(s.clients) != 1 || s.lifetime != 24*time.Hour {
				t.Error("a refused request changed something")
			}
		})
	}
}

func TestFaultJSON(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Fault{
		"zero":  {},
		"delay": {Kind: FaultDelay, Delay: 1500 * time.Millisecond},
		"all": {
			Kind: FaultStatus, Status: 500, Body: "b", Header: http.Header{"A": {"b"}}, Delay: time.Hour, Location: "l",
			ExpiresIn: json.RawMessage("null"), TokenType: "t", ClientID: "c", Times: 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := json.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			var got Fault
			if err := json.Unmarshal(out, &got); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s became %+v (%v), want %+v", out, got, err, want)
			}
		})
	}
}

func TestMethods(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	for request, want := range map[string]int{
		"GET /oauth/token": 405, "POST /v1/whoami": 405, "GET /sim/fault": 405, "POST /sim/stats": 405, "GET /": 404,
	} {
		method, path, _ := strings.Cut(request, " ")
		if status, _ := call(t, s, method, path, ""); status != want {
			t.Errorf("%s: %d, want %d", request, status, want)
		}
	}
}
