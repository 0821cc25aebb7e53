package main

import (
	"context"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	rotateSynopsis    = "Replace the token of an Autopay credential now."
	rotateDescription = `
Use this path if a token has leaked or Autopay rejects it before it expires. A
token that is less than 60 seconds old is not replaced; a warning says so. If the
rotation fails, the old token remains in use.
`
)

func (m *mount) pathRotate() *framework.Path {
	return credentialPath("rotate", logical.UpdateOperation,
		&framework.PathOperation{
			DisplayAttrs: &framework.DisplayAttributes{
				OperationPrefix: "autopay", OperationVerb: "rotate", OperationSuffix: "default-token|token",
			},
			Callback: m.pathRotateWrite, Responses: okResponse(rotationFields()), ForwardPerformanceStandby: true,
		},
		rotateSynopsis, rotateDescription)
}

// pathRotateWrite corresponds to UPDATE on autopay/rotate[/NAME]. It returns the fields of
// token without access_token, so that a policy can let an operator replace a token that
// the operator may not read. Standbys forward it to the active node, whose lock counts.
func (m *mount) pathRotateWrite(
	ctx context.Context,
	_ *logical.Request,
	d *framework.FieldData,
) (*logical.Response, error) {
	c, _, err := m.requested(ctx, d)
	if err != nil {
		return nil, err
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
	if err == nil {
		err = c.unusable(after) // deleted or damaged in the meantime
	}
	switch {
	case err != nil:
		return nil, err
	case after.fields == nil: // another node has changed the settings in the meantime
		return nil, errStopped
	}
	data, _ := after.response(m.now())
	delete(data, "access_token")
	resp := &logical.Response{Data: data}
	if warning != "" {
		resp.AddWarning(warning)
	}
	return resp, nil
}
