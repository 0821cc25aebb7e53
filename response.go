package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// respondError is the one place that turns errors into responses. A coded error
// keeps its code across the plugin boundary only if it is returned bare
// (sdk/plugin/pb/translation.go, ErrToProtoErr).
func respondError(err error) (*logical.Response, error) {
	var (
		user       *userError
		missing    *notConfiguredError
		unverified *unverifiedError
		failed     *failedAttempt
	)
	switch {
	case errors.As(err, &user), errors.As(err, &missing):
		return logical.ErrorResponse(err.Error()), nil
	case errors.As(err, &unverified) && unverified.kind == refusal:
		return logical.ErrorResponse(unverified.Error()), nil
	case errors.As(err, &unverified):
		return nil, logical.CodedError(http.StatusServiceUnavailable, unverified.Error())
	case errors.As(err, &failed):
		return nil, logical.CodedError(int(failed.Kind), failed.Error())
	case errors.Is(err, logical.ErrReadOnly):
		return nil, logical.ErrReadOnly
	case errors.Is(err, errStopped), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, logical.CodedError(http.StatusServiceUnavailable, "no answer in time; try again")
	default:
		return nil, err
	}
}

// requestedName is the name of the credential that a request is about. The error
// is a *userError.
func requestedName(d *framework.FieldData) (string, error) {
	return credentialName(d.Get(fieldName).(string))
}

// requested looks up the credential that a request is about, as lookup does.
func (m *mount) requested(ctx context.Context, d *framework.FieldData) (*credential, *snapshot, error) {
	name, err := requestedName(d)
	if err != nil {
		return nil, nil, err
	}
	return m.lookup(ctx, name)
}

func nameField() *framework.FieldSchema {
	return &framework.FieldSchema{
		Type:        framework.TypeString,
		Description: `Name of the credential. Without it: "default".`,
	}
}

func okResponse(fields map[string]*framework.FieldSchema) map[int][]framework.Response {
	return map[int][]framework.Response{http.StatusOK: {{Description: "OK", Fields: fields}}}
}

// rotationFields are the fields of the token path's response, less the token itself.
func rotationFields() map[string]*framework.FieldSchema {
	return map[string]*framework.FieldSchema{
		"token_type":          {Type: framework.TypeString, Required: true, Description: "Always Bearer."},
		"scope":               {Type: framework.TypeString, Required: true, Description: "What the token may be used for, as Autopay says."},
		"expire_time":         {Type: framework.TypeTime, Required: true, Description: "When Autopay stops honouring the token."},
		"last_vault_rotation": {Type: framework.TypeTime, Required: true, Description: "When the engine obtained the token."},
		"rotation_period":     {Type: framework.TypeInt64, Required: true, Description: "Seconds from this token to the next."},
		"ttl":                 {Type: framework.TypeInt64, Required: true, Description: "Seconds until the token is due to be replaced, at least 5. Read again then."},
	}
}

// credentialPath is a path with an optional NAME and one operation.
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
