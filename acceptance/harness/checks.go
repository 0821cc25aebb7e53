//go:build acceptance

package harness

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// Snapshot is what a refused write must leave as it was: the default credential
// of a mount, its token, and the requests that Autopay got for it.
type Snapshot struct {
	Config   map[string]any
	Token    Token
	Requests int
}

// Snapshot takes the state of the default credential, whose token must be
// served.
func (m Mount) Snapshot(tb testing.TB, p *Autopay, cred Credential) Snapshot {
	tb.Helper()
	return Snapshot{m.Read(tb, "config").Data, m.Token(tb, ""), p.Requests(cred.ID)}
}

// WantUnchanged fails the test unless the state is still the old one, but for the
// number of requests that the refused write cost.
func (m Mount) WantUnchanged(tb testing.TB, p *Autopay, cred Credential, old Snapshot, cost int) {
	tb.Helper()
	now := m.Snapshot(tb, p, cred)
	if !reflect.DeepEqual(now.Config, old.Config) {
		tb.Errorf("config is now %v, was %v", now.Config, old.Config)
	}
	now.Token.WantSame(tb, old.Token)
	if now.Requests != old.Requests+cost {
		tb.Errorf("the write cost %d requests, want %d", now.Requests-old.Requests, cost)
	}
}

// WantSame fails the test unless this is the same token in the same answer as
// before, but for its TTL.
func (t Token) WantSame(tb testing.TB, old Token) {
	tb.Helper()
	t.TTL = old.TTL
	if t != old {
		tb.Errorf("token is now %+v, was %+v", t, old)
	}
}

// WantCodes sends each request, such as "GET token", and fails the test when it is
// not answered with the given code.
func (m Mount) WantCodes(tb testing.TB, wants map[string]int) {
	tb.Helper()
	for request, want := range wants {
		method, path, _ := strings.Cut(request, " ")
		if a := m.Do(tb, method, path, nil); a.Status != want {
			tb.Errorf("%s: %v, want %d", request, a, want)
		}
	}
}

// Timestamp parses a time of the API, and fails the test unless it is in RFC 3339
// and UTC.
func Timestamp(tb testing.TB, text any) time.Time {
	tb.Helper()
	s, _ := text.(string)
	at, err := time.Parse(time.RFC3339, s)
	if err != nil || at.Location() != time.UTC {
		tb.Fatalf("%v is not RFC 3339 in UTC (%v)", text, err)
	}
	return at
}

// Integer returns a field of an answer, and fails the test unless it crossed the
// wire as a JSON number without a fraction. consul-template takes nothing else.
func Integer(tb testing.TB, data map[string]any, key string) int64 {
	tb.Helper()
	number, ok := data[key].(json.Number)
	n, err := number.Int64()
	if !ok || err != nil {
		tb.Errorf("%s is %T %v, want a whole number", key, data[key], data[key])
	}
	return n
}

// Want fails the test unless the answer has a status code and its errors hold all
// of the given texts. The failure names what was sent.
func (a Answer) Want(tb testing.TB, sent string, code int, texts ...string) {
	tb.Helper()
	missing := slices.DeleteFunc(texts, func(text string) bool { return strings.Contains(a.Errors(), text) })
	if a.Status != code || len(missing) > 0 {
		tb.Errorf("%s: %v, want %d and %q", sent, a, code, missing)
	}
}
