package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	tokenPath = "token"

	readSynopsis    = "Read the bearer token of an Autopay credential."
	readDescription = `
The token is shared by all readers, so it has no lease. Read it again after ttl
seconds. ttl is the time until the engine replaces the token (at most 60 seconds
while it can't), not until the token expires; see expire_time.
`
)

// # The read path
//
// Most reads find a live token in memory. hotRead answers them: it looks the name up,
// compares a few timestamps and copies the fields of the response. pathTokenRead is for the
// others: a name that is not in memory yet, storage that another node has changed, a
// token that is no longer live, and requests that the framework has to refuse. Both end
// in tokenResponse, so a reader can't tell which of them answered.

// tokenFields are the fields of the response. Their set is part of the contract:
// consul-template sleeps until ttl because rotation_period and ttl are there and no
// lease is, and Vault Secrets Operator restarts a deployment if any other field changes.
func tokenFields() map[string]*framework.FieldSchema {
	fields := rotationFields()
	fields["access_token"] = &framework.FieldSchema{
		Type: framework.TypeString, Required: true,
		Description:  "The bearer token, for the Authorization header.",
		DisplayAttrs: &framework.DisplayAttributes{Sensitive: true},
	}
	return fields
}

func (m *mount) pathToken() *framework.Path {
	return credentialPath(tokenPath, logical.ReadOperation,
		&framework.PathOperation{Callback: m.pathTokenRead, Responses: okResponse(tokenFields())},
		readSynopsis, readDescription)
}

// hotRead answers a read of a live token from memory (rule 1) and without the
// framework, which asks Vault for its replication state on every request
// (sdk/framework/backend.go, HandleRequest). It returns nil for everything else.
func (m *mount) hotRead(req *logical.Request) *logical.Response {
	// Data are query parameters, which the framework knows how to treat.
	if req.Operation != logical.ReadOperation || len(req.Data) != 0 {
		return nil
	}
	name, ok := strings.CutPrefix(req.Path, tokenPath+"/")
	if !ok {
		if req.Path != tokenPath {
			return nil
		}
		name = defaultName
	}
	c := m.known(name)
	if c == nil {
		return nil
	}
	s, now := c.snap.Load(), m.now()
	if s == nil || s.changes != c.changes.Load() || !s.live(now) {
		return nil
	}
	c.refreshIfDue(s, now)
	return tokenResponse(c, s, now)
}

// pathTokenRead corresponds to READ on autopay/token[/NAME].
func (m *mount) pathTokenRead(
	ctx context.Context,
	_ *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	c, s, err := m.requested(ctx, d)
	if err == nil {
		s, err = m.awaitLive(ctx, c, s)
	}
	if err != nil {
		// The active node counts what is passed on to it.
		if c != nil && !notConfigured(err) && !errors.Is(err, logical.ErrReadOnly) {
			c.counters.Load().reads[readError].Add(1)
		}
		return nil, err
	}
	return tokenResponse(c, s, m.now()), nil
}

// awaitLive returns a snapshot with a live token: s at once if it is one. Otherwise
// it waits for a refresh, and for one more each time that the settings change
// meanwhile, but never twice for the same settings.
func (m *mount) awaitLive(ctx context.Context, c *credential, s *snapshot) (*snapshot, error) {
	now := m.now()
	if s.live(now) {
		c.refreshIfDue(s, now)
		return s, nil
	}
	for {
		if !m.mayWrite() {
			return nil, logical.ErrReadOnly // Vault passes the read on (rule 10)
		}
		if f := s.blocked(now); f != nil {
			if s.limited(now) != nil {
				c.counters.Load().requests[requestLimited].Add(1)
			}
			return nil, f
		}
		settings := s.config.Generation
		err := c.refresh().wait(ctx)
		now, s = m.now(), c.snap.Load()
		switch {
		case s.live(now): // whatever became of this refresh
			return s, nil
		case err == nil:
			err = c.unusable(s) // deleted or damaged in the meantime
		}
		if err == nil && s.config.Generation == settings {
			err = errStopped
		}
		if err != nil {
			return nil, err
		}
	}
}

// tokenResponse is the token as readers get it. Two responses for one token
// differ in ttl alone, and in warnings.
func tokenResponse(c *credential, s *snapshot, now time.Time) *logical.Response {
	data, f := s.response(now)
	resp, outcome := &logical.Response{Data: data}, readOK
	if f != nil {
		outcome = readDegraded
		resp.AddWarning(fmt.Sprintf("this token could not be replaced and is served until %s: %s",
			s.liveUntil.UTC().Format(time.RFC3339), f.Error()))
	}
	c.counters.Load().reads[outcome].Add(1)
	return resp
}
