package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// respondError is the one place that turns errors into responses. The caller's faults are
// error responses, a 400. Autopay's are coded errors: 502 and 503, which Vault's clients
// repeat; that costs nothing, because a backoff answers them. A coded error keeps its
// code across the plugin boundary only if it is returned bare
// (sdk/plugin/pb/translation.go, ErrToProtoErr). Everything else is a 500.
func respondError(err error) (*logical.Response, error) {
	switch e := err.(type) { //nolint:errorlint // none of these is ever wrapped
	case *userError, *notConfiguredError:
		return logical.ErrorResponse(err.Error()), nil
	case *unverifiedError:
		if e.kind == refusal {
			return logical.ErrorResponse(e.Error()), nil
		}
		return nil, logical.CodedError(http.StatusServiceUnavailable, e.Error())
	case *failedAttempt:
		return nil, logical.CodedError(int(e.Kind), e.Error())
	}
	switch {
	case errors.Is(err, logical.ErrReadOnly):
		return nil, logical.ErrReadOnly
	case errors.Is(err, errStopped), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, logical.CodedError(http.StatusServiceUnavailable, "timed out waiting for a token; try again")
	default:
		return nil, err
	}
}

// nameField is the optional NAME behind a path. One pattern with an optional part keeps
// ?name= in a query harmless: the empty part of the path wins. Two patterns would let
// it step around a policy on the path.
func nameField() *framework.FieldSchema {
	return &framework.FieldSchema{
		Type:        framework.TypeString,
		Description: `Name of the credential. Defaults to "default".`,
	}
}

// okResponse is the schema of a response, for OpenAPI and the tests.
func okResponse(fields map[string]*framework.FieldSchema) map[int][]framework.Response {
	return map[int][]framework.Response{http.StatusOK: {{Description: "OK", Fields: fields}}}
}

// required marks fields as those that every response has.
func required(fields map[string]*framework.FieldSchema) map[string]*framework.FieldSchema {
	for _, field := range fields {
		field.Required = true
	}
	return fields
}

// rotationFields are the fields of the token path's response, less the token itself.
func rotationFields() map[string]*framework.FieldSchema {
	return required(map[string]*framework.FieldSchema{
		"token_type":          {Type: framework.TypeString, Description: "Always Bearer."},
		"scope":               {Type: framework.TypeString, Description: "Scope that Autopay granted; can be empty."},
		"expire_time":         {Type: framework.TypeTime, Description: "When Autopay stops honoring the token."},
		"last_vault_rotation": {Type: framework.TypeTime, Description: "When the engine obtained the token."},
		"rotation_period": {
			Type:        framework.TypeInt64,
			Description: "Seconds from the time this token was obtained until the engine replaces it.",
		},
		"ttl": {Type: framework.TypeInt64, Description: "Seconds until the engine replaces the token: read it again then."},
	})
}

// credentialPath is a path with an optional NAME and one operation.
func credentialPath(
	path string, op logical.Operation, do *framework.PathOperation, synopsis, description string,
) *framework.Path {
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
