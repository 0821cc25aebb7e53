package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	tokenPath = "token"

	readSynopsis    = "Read the bearer token of an Autopay credential."
	readDescription = `
The token is shared by all readers, so it has no lease. Read it again after
ttl seconds: by then it has been replaced. ttl is not the time to its expiry;
that is expire_time.
`
	rotateSynopsis    = "Replace the token of an Autopay credential now."
	rotateDescription = `
For a token that has leaked, or that Autopay refuses before its time. A token
younger than 60 s is kept, with a warning. A failed rotation keeps the old token.
`
	statusSynopsis    = "Show the health of an Autopay credential, without its token."
	statusDescription = `
state is ok; degraded (a live token, but the last refresh failed); failing (no
live token); or pending (no token asked for yet).
`
)

// userError is the caller's fault: a 400.
type userError struct{ text string }

// Error implements error.
func (e *userError) Error() string { return e.text }

// unprovedError is a config write that Autopay did not confirm.
type unprovedError struct {
	*fault
	settings [sha256.Size]byte // of the settings that were tried
	at       time.Time
}

// respondError is the one place that turns errors into responses. A coded
// error keeps its code across the plugin boundary only when it is returned
// bare (FACTS: sdk/plugin/pb/translation.go, ErrToProtoErr).
func respondError(err error) (*logical.Response, error) {
	var (
		user     *userError
		unproved *unprovedError
		failed   *failure
	)
	switch {
	case errors.As(err, &user):
		return logical.ErrorResponse(user.text), nil
	case errors.As(err, &unproved) && unproved.refused():
		return logical.ErrorResponse(unproved.text + "; nothing was changed"), nil
	case errors.As(err, &unproved) && unproved.unstored():
		return nil, logical.CodedError(unproved.status, unproved.text+"; nothing was changed")
	case errors.As(err, &unproved):
		return nil, logical.CodedError(unproved.status,
			unproved.text+"; nothing was changed; verify=false stores it unproved")
	case errors.As(err, &failed):
		return nil, logical.CodedError(failed.Status, failed.Error())
	case isReadOnly(err): // last, for it goes by the text, and Autopay words some of those above
		return nil, logical.ErrReadOnly
	case errors.Is(err, errClosed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, logical.CodedError(http.StatusServiceUnavailable, "no answer in time; try again")
	default:
		return nil, err
	}
}

func tokenFields() map[string]*framework.FieldSchema {
	fields := rotationFields()
	fields["access_token"] = &framework.FieldSchema{
		Type: framework.TypeString, Required: true,
		Description:  "The bearer token, for the Authorization header.",
		DisplayAttrs: &framework.DisplayAttributes{Sensitive: true},
	}
	return fields
}

// rotationFields are those of token, less the token itself.
func rotationFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		"token_type":          {Type: framework.TypeString, Required: true, Description: "Always Bearer."},
		"scope":               {Type: framework.TypeString, Required: true, Description: "What the token is good for, as Autopay says."},
		"expire_time":         {Type: framework.TypeTime, Required: true, Description: "When Autopay stops honouring the token."},
		"last_vault_rotation": {Type: framework.TypeTime, Required: true, Description: "When the engine obtained the token."},
		"rotation_period":     {Type: framework.TypeInt64, Required: true, Description: "Seconds between two tokens."},
		"ttl":                 {Type: framework.TypeInt64, Required: true, Description: "Seconds until the token is due to be replaced, at least 5: read again then."},
	}
}

// credentialPath is a path whose NAME is optional, with one operation.
func credentialPath(path string, op logical.Operation, do *framework.PathOperation, synopsis, description string) *framework.Path {
	do.Summary = synopsis
	return &framework.Path{
		Pattern: path + framework.OptionalParamRegex(fieldName),
		DisplayAttrs: &framework.DisplayAttributes{
			OperationPrefix: "autopay", OperationSuffix: "default-" + path + "|" + path,
		},
		Fields:          map[string]*framework.FieldSchema{fieldName: nameField()},
		Operations:      map[logical.Operation]framework.OperationHandler{op: do},
		HelpSynopsis:    synopsis,
		HelpDescription: description,
	}
}

func (b *backend) pathToken() *framework.Path {
	return credentialPath(tokenPath, logical.ReadOperation,
		&framework.PathOperation{Callback: b.pathTokenRead, Responses: okResponse(tokenFields())},
		readSynopsis, readDescription)
}

func (b *backend) pathRotate() *framework.Path {
	return credentialPath("rotate", logical.UpdateOperation,
		&framework.PathOperation{
			DisplayAttrs: &framework.DisplayAttributes{
				OperationPrefix: "autopay", OperationVerb: "rotate", OperationSuffix: "default-token|token",
			},
			Callback: b.pathRotateWrite, Responses: okResponse(rotationFields()), ForwardPerformanceStandby: true,
		},
		rotateSynopsis, rotateDescription)
}

// hotRead answers a read of a live token that is not due, from memory and
// without the framework, which asks Vault for its replication state on every
// request (sdk/framework/backend.go, HandleRequest). It returns nil for
// everything else.
func (b *backend) hotRead(req *logical.Request) *logical.Response {
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
	v, ok := b.credentials.Load(name)
	if !ok {
		return nil
	}
	c := v.(*credential)
	s, now := c.snap.Load(), b.now()
	if s == nil || s.epoch != c.epoch.Load() || !s.live(now) || s.due(now) {
		return nil
	}
	return c.tokenResponse(s, now)
}

// pathTokenRead corresponds to READ on autopay/token[/NAME].
func (b *backend) pathTokenRead(
	ctx context.Context,
	req *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	c, s, err := b.findForUse(ctx, req, d)
	if err == nil {
		s, err = c.awaitLive(ctx, s)
	}
	switch {
	case err != nil && c == nil:
		return respondError(err)
	case errors.Is(err, logical.ErrReadOnly): // the active node counts it
		return respondError(err)
	case err != nil:
		c.counts.Load().reads[readError].Add(1)
		return respondError(err)
	case s.config == nil: // it was deleted meanwhile
		return respondError(notConfigured(req, d))
	}
	return c.tokenResponse(s, b.now()), nil
}

// awaitLive returns a snapshot with a live token, at once where s is one, and
// starts the refresh that is due. Where the credential is deleted meanwhile,
// the snapshot has no config.
func (c *credential) awaitLive(ctx context.Context, s *snapshot) (*snapshot, error) {
	now := c.b.now()
	if s.live(now) && s.due(now) && now.UnixNano() >= c.rest.Load() {
		c.refresh()
	}
	for !s.live(now) {
		if !c.b.mayWrite() {
			return nil, logical.ErrReadOnly // the active node is to do it (rule 10)
		}
		if f := s.blocked(now); f != nil {
			if s.limited(now) != nil {
				c.counts.Load().requests[requestLimited].Add(1)
			}
			return nil, f
		}
		err := c.refresh().wait(ctx)
		now, s = c.b.now(), c.snap.Load()
		switch {
		case s.live(now): // whatever became of this refresh
		case err != nil:
			return nil, err
		case s.config == nil:
			return s, nil
		}
		// Otherwise other settings came meanwhile, which have no token yet.
	}
	return s, nil
}

// tokenResponse is the token as readers get it. Two of them for one token
// differ in ttl alone (and in warnings).
func (c *credential) tokenResponse(s *snapshot, now time.Time) *logical.Response {
	resp, outcome := &logical.Response{Data: s.answer(now)}, readOK
	if f := s.problem(now); f != nil {
		outcome = readDegraded
		resp.AddWarning(fmt.Sprintf("this token could not be replaced and is served until %s: %s",
			s.liveUntil.UTC().Format(time.RFC3339), f.Error()))
	}
	c.counts.Load().reads[outcome].Add(1)
	return resp
}

// pathRotateWrite corresponds to UPDATE on autopay/rotate[/NAME].
func (b *backend) pathRotateWrite(
	ctx context.Context,
	req *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	c, _, err := b.findForUse(ctx, req, d)
	if err != nil {
		return respondError(err)
	}
	var (
		warning string
		after   *snapshot
	)
	err = c.exclusively(ctx, func(ctx context.Context) (err error) {
		warning, err = c.rotate(ctx)
		after = c.snap.Load()
		return err
	})
	if err != nil {
		return respondError(err)
	}
	switch {
	case after.config == nil:
		return respondError(notConfigured(req, d))
	case after.fields == nil: // other settings came from another node meanwhile
		return respondError(errClosed)
	}
	resp := &logical.Response{Data: after.answer(b.now())}
	delete(resp.Data, "access_token")
	if warning != "" {
		resp.AddWarning(warning)
	}
	return resp, nil
}

// findConfigured finds the credential that a request names; both are nil where
// it is not configured. Beside an error the credential is there if it is known.
func (b *backend) findConfigured(ctx context.Context, d *framework.FieldData) (*credential, *snapshot, error) {
	name, err := credentialName(d.Get(fieldName).(string))
	if err != nil {
		return nil, nil, &userError{err.Error()}
	}
	c, s, err := b.find(ctx, name)
	switch {
	case err != nil:
		return c, nil, err
	case s == nil:
		return nil, nil, nil
	}
	return c, s, s.damage
}

// findForUse is findConfigured for paths where a missing credential is the caller's mistake.
func (b *backend) findForUse(ctx context.Context, req *logical.Request, d *framework.FieldData) (*credential, *snapshot, error) {
	c, s, err := b.findConfigured(ctx, d)
	if err == nil && s == nil {
		err = notConfigured(req, d)
	}
	return c, s, err
}

// notConfigured tells which path to write, with which fields.
func notConfigured(req *logical.Request, d *framework.FieldData) error {
	path := req.MountPoint + "config"
	if name := d.Get(fieldName).(string); name != "" {
		path += "/" + name
	}
	return &userError{fmt.Sprintf("this credential is not configured: write client_id and client_secret to %s first", path)}
}
