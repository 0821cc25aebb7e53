package main

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	statusSynopsis    = "Show the health of an Autopay credential, without its token."
	statusDescription = `
state is ok; degraded (a live token, but the last refresh failed); failing (no
live token); or pending (no token requested yet).
`
)

func (m *mount) pathStatus() *framework.Path {
	return credentialPath("status", logical.ReadOperation,
		&framework.PathOperation{Callback: m.pathStatusRead, Responses: okResponse(statusFields())},
		statusSynopsis, statusDescription)
}

// statusFields are the fields of the response: everything about the health of a
// credential that token must not show, because its readers watch it for changes.
func statusFields() map[string]*framework.FieldSchema {
	return required(map[string]*framework.FieldSchema{
		"state": {Type: framework.TypeString, Description: "ok, degraded, failing or pending."},
		"expire_time": {
			Type:        framework.TypeTime,
			Description: "When Autopay stops honoring the last token; null before the first token.",
		},
		"last_vault_rotation": {
			Type:        framework.TypeTime,
			Description: "When the engine obtained the last token; null before the first token.",
		},
		"next_rotation": {
			Type:        framework.TypeTime,
			Description: "Time of the next token request, including backoff and request limit; null before the first token.",
		},
		"next_rotation_reason": {
			Type:        framework.TypeString,
			Description: "What determines next_rotation: schedule, period, lifetime or retry; empty before the first token.",
		},
		"last_error": {
			Type:        framework.TypeString,
			Description: "Why the token can't be replaced; empty if nothing is wrong.",
		},
		"last_error_time":      {Type: framework.TypeTime, Description: "Time of last_error; null if nothing is wrong."},
		"consecutive_failures": {Type: framework.TypeInt, Description: "Failed attempts since the last token."},
		"next_attempt": {
			Type:        framework.TypeTime,
			Description: "When the next request may be sent; null if nothing is wrong.",
		},
		"token_requests_24h": {
			Type:        framework.TypeInt,
			Description: "Token requests in the last 24 hours that count towards the limit.",
		},
		"token_request_limit": {
			Type:        framework.TypeInt,
			Description: "Token requests allowed in any 24 hours; 0 is unlimited.",
		},
		"plugin_version": {Type: framework.TypeString, Description: "Version of the engine."},
	})
}

// pathStatusRead corresponds to READ on autopay/status[/NAME]. It never contacts Autopay.
// On a standby it shows what that node last read from storage, as its own readers get it.
func (m *mount) pathStatusRead(
	ctx context.Context,
	_ *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	_, s, err := m.requested(ctx, d)
	switch {
	case notConfigured(err):
		return nil, nil // Vault answers with 404
	case err != nil:
		return nil, err
	}
	now := m.now()
	data := map[string]any{
		"state":                s.state(now),
		"expire_time":          timeOrNull(s.entry.ExpireTime),
		"last_vault_rotation":  timeOrNull(s.entry.LastVaultRotation),
		"next_rotation":        nil,
		"next_rotation_reason": "",
		"last_error":           "",
		"last_error_time":      nil,
		"consecutive_failures": 0,
		"next_attempt":         nil,
		"token_requests_24h":   s.entry.requestsAt(now),
		"token_request_limit":  s.config.TokenRequestLimit,
		"plugin_version":       version,
	}
	if s.entry.AccessToken != "" {
		data["next_rotation"] = timeOrNull(s.dueAt())
		data["next_rotation_reason"] = s.rotationReason()
	}
	if f := s.problem(now); f != nil {
		data["last_error"] = f.Text
		data["last_error_time"] = timeOrNull(f.Time)
		data["consecutive_failures"] = f.Count
		data["next_attempt"] = timeOrNull(s.dueAt())
	}
	return &logical.Response{Data: data}, nil
}
