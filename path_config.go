package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	fieldAfter = "after"
	fieldLimit = "limit"

	configSynopsis    = "Store, read and delete an Autopay credential."
	configDescription = `
A credential is a client ID and secret that Autopay issued. The engine trades
them for a bearer token, which is read at token/NAME. If you omit NAME, the path
refers to the credential named "default".

If a write changes client_id, client_secret, token_url, audience or ca_cert, the
engine first requests a token with the new settings. If that fails, nothing
changes.
`
	configListSynopsis    = "List the names of the configured credentials."
	configListDescription = `
key_info ("vault list -detailed") shows the state and expire_time of each
credential, from memory. Client secrets are never returned.
`
)

// # The config path
//
// The fields of a write are checked three times, for three reasons. HandleRequest checks
// their types before the SDK does, which quotes values (backend.go). A new name's fields
// are checked before the name gets a credential, so that a mistake leaves nothing in
// memory. Under the credential's lock they are checked together with the settings that
// are stored then, because an update names only what it changes.
//
// Vault replicates settings to every cluster, so writes and deletes are forwarded to the
// active node of the primary cluster. Everything else about a credential is local to a
// cluster and is forwarded to its own active node at most.

// configSchema is the schema of the stored fields of a credential: as a write takes
// them, or as a read shows them, without secrets and with durations as numbers.
func configSchema(read bool) map[string]*framework.FieldSchema {
	fields := map[string]*framework.FieldSchema{}
	for _, f := range configFields {
		if read && f.secret {
			continue
		}
		schema := &framework.FieldSchema{Description: f.description, Default: f.fallback}
		switch f.value(new(configEntry)).(type) {
		case *string:
			schema.Type = framework.TypeString
		case *int64:
			schema.Type = framework.TypeDurationSecond
			if read {
				schema.Type = framework.TypeInt64
			}
		case *int:
			schema.Type = framework.TypeInt
		}
		if f.secret {
			schema.DisplayAttrs = &framework.DisplayAttributes{Sensitive: true}
		}
		fields[f.name] = schema
	}
	return fields
}

func (m *mount) pathConfigList() *framework.Path {
	return &framework.Path{
		Pattern: "config/$",
		DisplayAttrs: &framework.DisplayAttributes{
			OperationPrefix: "autopay", OperationSuffix: "configurations", Navigation: true, ItemType: "Credential",
		},
		Fields: map[string]*framework.FieldSchema{
			fieldAfter: {Type: framework.TypeString, Description: "List only names that sort after this one.", Query: true},
			fieldLimit: {
				Type: framework.TypeInt, Query: true,
				Description: "List at most this many names; 0 (the default) lists all.",
			},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ListOperation: &framework.PathOperation{
				Callback: m.pathConfigListNames,
				Summary:  configListSynopsis,
				Responses: okResponse(map[string]*framework.FieldSchema{
					"keys":     {Type: framework.TypeStringSlice, Description: "Names of the credentials, sorted.", Required: true},
					"key_info": {Type: framework.TypeMap, Description: "state and expire_time of each credential in memory, by name."},
				}),
				// The active node knows; a standby without readers does not.
				ForwardPerformanceStandby: true,
			},
		},
		HelpSynopsis:    configListSynopsis,
		HelpDescription: configListDescription,
	}
}

func (m *mount) pathConfig() *framework.Path {
	shown := configSchema(true)
	shown[fieldSecretUpdated] = &framework.FieldSchema{
		Type:        framework.TypeTime,
		Description: "When the stored client_secret was last changed; null if v0.1.0 stored it.",
	}
	fields := configSchema(false)
	fields[fieldName] = nameField()
	fields[fieldVerify] = &framework.FieldSchema{
		Type:        framework.TypeBool,
		Default:     true,
		Description: "Verify the credential with Autopay before it replaces the stored one (the default). Not stored.",
	}
	write := &framework.PathOperation{
		DisplayAttrs: &framework.DisplayAttributes{
			OperationPrefix: "autopay", OperationVerb: "configure", OperationSuffix: "default-credential|credential",
		},
		Callback:                    m.pathConfigWrite,
		Summary:                     "Store or change a credential.",
		Responses:                   map[int][]framework.Response{http.StatusNoContent: {{Description: "Stored."}}},
		ForwardPerformanceStandby:   true,
		ForwardPerformanceSecondary: true,
	}
	return &framework.Path{
		Pattern: "config" + framework.OptionalParamRegex(fieldName),
		DisplayAttrs: &framework.DisplayAttributes{
			OperationPrefix: "autopay", OperationSuffix: "default-configuration|configuration",
		},
		Fields:         fields,
		ExistenceCheck: m.pathConfigExists,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.CreateOperation: write,
			logical.UpdateOperation: write,
			logical.ReadOperation: &framework.PathOperation{
				Callback:  m.pathConfigRead,
				Summary:   "Read a credential, without its secret.",
				Responses: okResponse(shown),
			},
			logical.DeleteOperation: &framework.PathOperation{
				Callback: m.pathConfigDelete,
				Summary:  "Delete a credential, its token and its ledger of requests.",
				Responses: map[int][]framework.Response{
					http.StatusNoContent: {{Description: "Deleted, or did not exist."}},
				},
				ForwardPerformanceStandby:   true,
				ForwardPerformanceSecondary: true,
			},
		},
		HelpSynopsis:    configSynopsis,
		HelpDescription: configDescription,
	}
}

// pathConfigListNames corresponds to LIST on autopay/config/. Clients of OpenBao
// page with after and limit. Only the names come from storage; a credential that
// is not loaded yet has no key_info.
func (m *mount) pathConfigListNames(
	ctx context.Context,
	_ *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	names, err := m.storage.List(ctx, configPrefix)
	if err != nil {
		return nil, &storageError{"listing credentials", err}
	}
	slices.Sort(names)
	if after := d.Get(fieldAfter).(string); after != "" {
		names = slices.DeleteFunc(names, func(name string) bool { return name <= after })
	}
	if limit := d.Get(fieldLimit).(int); limit > 0 {
		names = names[:min(limit, len(names))]
	}
	now, info := m.now(), map[string]any{}
	for _, name := range names {
		c := m.known(name)
		if c == nil {
			continue
		}
		if s := c.snap.Load(); s.exists() {
			health := map[string]any{"state": s.state(now)}
			if s.fields != nil {
				health["expire_time"] = s.fields["expire_time"]
			}
			info[name] = health
		}
	}
	return logical.ListResponseWithInfo(names, info), nil
}

// pathConfigExists tells Vault whether a write on autopay/config[/NAME] is a
// create or an update.
func (m *mount) pathConfigExists(
	ctx context.Context,
	_ *logical.Request,
	d *framework.FieldData,
) (bool, error) {
	name, err := requestedName(d)
	if err != nil {
		return false, nil //nolint:nilerr // the write itself answers with the reason
	}
	c, err := m.lookupAny(ctx, name)
	return c != nil && c.snap.Load().exists(), err
}

// pathConfigRead corresponds to READ on autopay/config[/NAME].
func (m *mount) pathConfigRead(
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
	data := map[string]any{fieldSecretUpdated: timeOrNull(s.config.SecretUpdated)}
	for _, f := range configFields {
		if !f.secret {
			data[f.name] = f.shown(s.config)
		}
	}
	return &logical.Response{Data: data}, nil
}

// pathConfigDelete corresponds to DELETE on autopay/config[/NAME]. A creation that failed
// may have left a ledger, which is deleted too. A name that left nothing is a 204 and
// takes no memory.
func (m *mount) pathConfigDelete(
	ctx context.Context,
	_ *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	name, err := requestedName(d)
	if err != nil {
		return nil, err
	}
	c, err := m.lookupAny(ctx, name)
	if c == nil && err == nil {
		var left *logical.StorageEntry // of a creation that failed before the last restart
		if left, err = m.get(ctx, tokenPrefix+name); left != nil {
			c = m.credential(name)
		}
	}
	if c != nil && err == nil {
		err = c.exclusively(ctx, c.remove)
	}
	return nil, err // 204
}

// pathConfigWrite corresponds to CREATE and UPDATE on autopay/config[/NAME].
func (m *mount) pathConfigWrite(
	ctx context.Context,
	req *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	name, err := requestedName(d)
	if err != nil {
		return nil, err
	}
	if given, ok := req.Data[fieldName]; ok && given != name {
		return nil, &userError{"name is part of the path: write to config/NAME on this mount"}
	}
	c, err := m.lookupAny(ctx, name)
	if err != nil {
		return nil, err
	}
	if c == nil { // a new name: a mistake must leave no trace in memory
		if _, err := (*configEntry)(nil).changed(req.Data, m.now()); err != nil {
			return nil, err
		}
		c = m.credential(name)
	}
	err = c.exclusively(ctx, func(ctx context.Context) error {
		s, err := c.current(ctx)
		if err != nil {
			return err
		}
		next, err := s.config.changed(req.Data, m.now())
		if err != nil {
			return err
		}
		return c.configure(ctx, s, next, d.Get(fieldVerify).(bool))
	})
	if err != nil {
		return nil, err
	}
	return writeResponse(c.snap.Load(), req, d), nil
}

// writeResponse is what a write is answered with: nil, a 204, unless there is a
// warning. An empty response keeps the framework's warning about unknown fields,
// which nil would drop.
func writeResponse(s *snapshot, req *logical.Request, d *framework.FieldData) *logical.Response {
	resp := &logical.Response{}
	if gap := s.scheduleGap(); !gap.IsZero() {
		resp.AddWarning(fmt.Sprintf("rotation_schedule has no scheduled time in the %s after %s "+
			"(90%% of a token's lifetime); the engine will replace the token of that time at 75%% of its lifetime",
			s.entry.lifetime()*9/10, formatTime(gap)))
		return resp
	}
	for field := range req.Data {
		if d.Schema[field] == nil {
			return resp
		}
	}
	return nil
}
