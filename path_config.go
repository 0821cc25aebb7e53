package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	configPrefix = "config/" // in storage: config/NAME

	fieldName              = "name"
	fieldClientID          = "client_id"
	fieldClientSecret      = "client_secret"
	fieldTokenURL          = "token_url"
	fieldAudience          = "audience"
	fieldCACert            = "ca_cert"
	fieldRotationPeriod    = "rotation_period"
	fieldRequestTimeout    = "request_timeout"
	fieldTokenRequestLimit = "token_request_limit"
	fieldVerify            = "verify"

	configSynopsis    = "Store, read and delete an Autopay credential."
	configDescription = `
A credential is a client ID and secret that Autopay issued. The engine trades
them for a bearer token, which is read at token/NAME. Without a NAME all paths
mean the credential "default".

A write that changes what a token is issued for is proved first: one token is
requested with the new settings. If Autopay refuses, nothing is changed.
`
	configListSynopsis    = "List the names of the configured credentials."
	configListDescription = "The secrets are not shown, here or anywhere."
)

func nameField() *framework.FieldSchema {
	return &framework.FieldSchema{
		Type:        framework.TypeString,
		Description: `Name of the credential. Without it: "default".`,
	}
}

// configFields are the stored fields of a credential that a read shows.
func configFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		fieldClientID: {
			Type:        framework.TypeString,
			Description: "Client ID that Autopay issued. Required at creation.",
		},
		fieldTokenURL: {
			Type:        framework.TypeString,
			Default:     defaultTokenURL,
			Description: `Autopay's token endpoint: https, or http to a loopback host. A change must bring client_secret with it. "" puts the default, Autopay's own, back.`,
		},
		fieldAudience: {
			Type:        framework.TypeString,
			Default:     defaultAudience,
			Description: `API that tokens are asked for. "" puts the default back.`,
		},
		fieldCACert: {
			Type:        framework.TypeString,
			Description: `PEM certificates that are the only roots trusted for token_url. A change must bring client_secret with it. "" (the default) trusts the system's roots.`,
		},
		fieldRotationPeriod: {
			Type:        framework.TypeDurationSecond,
			Description: "How old a token may get before it is replaced: 0 (the default) for three quarters of its lifetime, or at least 5 s; never later than 90 % of its lifetime.",
		},
		fieldRequestTimeout: {
			Type:        framework.TypeDurationSecond,
			Default:     defaultRequestTimeout,
			Description: "Time for one whole exchange with Autopay, 1 s to 60 s; 10 s by default.",
		},
		fieldTokenRequestLimit: {
			Type:        framework.TypeInt,
			Default:     defaultRequestLimit,
			Description: "Token requests allowed in any 24 hours; 100 by default, 0 is unlimited.",
		},
	}
}

// configResponseFields are configFields as a read gives them: durations are
// whole seconds, as numbers.
func configResponseFields() map[string]*framework.FieldSchema {
	fields := configFields()
	fields[fieldRotationPeriod].Type = framework.TypeInt64
	fields[fieldRequestTimeout].Type = framework.TypeInt64
	return fields
}

func (b *backend) pathConfigList() *framework.Path {
	return &framework.Path{
		Pattern: configPrefix + "$",
		DisplayAttrs: &framework.DisplayAttributes{
			OperationPrefix: "autopay", OperationSuffix: "configurations", Navigation: true, ItemType: "Credential",
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ListOperation: &framework.PathOperation{
				Callback: b.pathConfigListNames,
				Summary:  configListSynopsis,
				Responses: okResponse(map[string]*framework.FieldSchema{
					"keys": {Type: framework.TypeStringSlice, Description: "Names of the credentials.", Required: true},
				}),
			},
		},
		HelpSynopsis:    configListSynopsis,
		HelpDescription: configListDescription,
	}
}

func (b *backend) pathConfig() *framework.Path {
	fields := configFields()
	fields[fieldName] = nameField()
	fields[fieldClientSecret] = &framework.FieldSchema{
		Type:         framework.TypeString,
		Description:  "Client secret that Autopay issued. Required at creation; never returned.",
		DisplayAttrs: &framework.DisplayAttributes{Sensitive: true},
	}
	fields[fieldVerify] = &framework.FieldSchema{
		Type:        framework.TypeBool,
		Default:     true,
		Description: "Prove the credential at Autopay before it replaces the stored one (the default). Not stored.",
	}
	write := &framework.PathOperation{
		DisplayAttrs: &framework.DisplayAttributes{
			OperationPrefix: "autopay", OperationVerb: "configure", OperationSuffix: "default-credential|credential",
		},
		Callback:                    b.pathConfigWrite,
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
		ExistenceCheck: b.pathConfigExists,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.CreateOperation: write,
			logical.UpdateOperation: write,
			logical.ReadOperation: &framework.PathOperation{
				Callback:  b.pathConfigRead,
				Summary:   "Read a credential, without its secret.",
				Responses: okResponse(configResponseFields()),
			},
			logical.DeleteOperation: &framework.PathOperation{
				Callback:                    b.pathConfigDelete,
				Summary:                     "Delete a credential, its token and its ledger of requests.",
				Responses:                   map[int][]framework.Response{http.StatusNoContent: {{Description: "Deleted, or not there."}}},
				ForwardPerformanceStandby:   true,
				ForwardPerformanceSecondary: true,
			},
		},
		HelpSynopsis:    configSynopsis,
		HelpDescription: configDescription,
	}
}

func okResponse(fields map[string]*framework.FieldSchema) map[int][]framework.Response {
	return map[int][]framework.Response{http.StatusOK: {{Description: "OK", Fields: fields}}}
}

// pathConfigListNames corresponds to LIST on autopay/config/.
func (b *backend) pathConfigListNames(
	ctx context.Context,
	_ *logical.Request,
	_ *framework.FieldData,
) (*logical.Response, error) {
	names, err := b.storage.List(ctx, configPrefix)
	if err != nil {
		return respondError(fmt.Errorf("listing credentials: %w", err))
	}
	return logical.ListResponse(names), nil
}

// pathConfigExists tells Vault whether a write on autopay/config[/NAME] is a create or an update.
func (b *backend) pathConfigExists(
	ctx context.Context,
	_ *logical.Request,
	d *framework.FieldData,
) (bool, error) {
	name, err := credentialName(d.Get(fieldName).(string))
	if err != nil {
		return false, nil //nolint:nilerr // the write itself answers with the reason
	}
	_, s, err := b.find(ctx, name)
	return s != nil, err
}

// pathConfigRead corresponds to READ on autopay/config[/NAME].
func (b *backend) pathConfigRead(
	ctx context.Context,
	_ *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	_, s, err := b.findConfigured(ctx, d)
	if err != nil {
		return respondError(err)
	}
	if s == nil {
		return nil, nil // Vault's way to say 404
	}
	return &logical.Response{Data: map[string]any{
		fieldClientID:          s.config.ClientID,
		fieldTokenURL:          s.config.tokenURL(),
		fieldAudience:          s.config.audience(),
		fieldCACert:            s.config.CACert,
		fieldRotationPeriod:    s.config.RotationPeriod,
		fieldRequestTimeout:    s.config.RequestTimeout,
		fieldTokenRequestLimit: s.config.TokenRequestLimit,
	}}, nil
}

// pathConfigDelete corresponds to DELETE on autopay/config[/NAME].
func (b *backend) pathConfigDelete(
	ctx context.Context,
	_ *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	name, err := credentialName(d.Get(fieldName).(string))
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	c, s, err := b.find(ctx, name)
	if err != nil {
		return respondError(err)
	}
	if s == nil {
		return nil, nil // 204: there is nothing to delete
	}
	if err := c.exclusively(ctx, c.remove); err != nil {
		return respondError(err)
	}
	return nil, nil // 204
}

// pathConfigWrite corresponds to CREATE and UPDATE on autopay/config[/NAME].
func (b *backend) pathConfigWrite(
	ctx context.Context,
	req *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	name, err := credentialName(d.Get(fieldName).(string))
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	if given, ok := req.Data[fieldName]; ok && given != name {
		return logical.ErrorResponse("name is part of the path: write to %sconfig/NAME", req.MountPoint), nil
	}
	c, _, err := b.find(ctx, name)
	if err != nil {
		return respondError(err)
	}
	if c == nil { // a new name, of which a mistake must leave no trace in memory
		if _, err := changedConfig(nil, req.Data); err != nil {
			return respondError(err)
		}
		c = b.credential(name)
	}
	err = c.exclusively(ctx, func(ctx context.Context) error {
		s, err := c.current(ctx)
		if err != nil {
			return err
		}
		next, err := changedConfig(s.config, req.Data)
		if err != nil {
			return err
		}
		return c.configure(ctx, s, next, d.Get(fieldVerify).(bool))
	})
	if err != nil {
		return respondError(err)
	}
	for field := range req.Data {
		if d.Schema[field] == nil {
			return &logical.Response{}, nil // nil would drop the framework's warning of it
		}
	}
	return nil, nil // 204
}

// changedConfig is the stored config (nil: none) with the fields of a request
// in place, validated. The stored one is left as it is.
func changedConfig(stored *configEntry, data map[string]any) (*configEntry, error) {
	next := newConfigEntry()
	if stored != nil {
		*next = *stored
	}
	for field, value := range data {
		if err := next.set(field, value); err != nil {
			return nil, &userError{err.Error()}
		}
	}
	if err := next.validate(); err != nil {
		return nil, &userError{err.Error()}
	}
	// Whoever may only update must not be able to send the stored secret to
	// a host of their own.
	if _, given := data[fieldClientSecret]; stored != nil && !given && !next.sendsTo(stored) {
		return nil, &userError{"a change of token_url or ca_cert must bring client_secret with it"}
	}
	return next, nil
}

// checkConfigFields looks at the types of a config request's fields before the
// SDK does, whose own error quotes the value back into the answer and the log.
func checkConfigFields(data map[string]any) error {
	scratch := new(configEntry)
	for field, value := range data {
		if err := scratch.set(field, value); err != nil {
			return err
		}
	}
	return nil
}
