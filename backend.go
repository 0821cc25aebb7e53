package main

import (
	"context"
	"encoding/json"
	"maps"
	"regexp"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const backendHelp = `
The Autopay secrets engine keeps one bearer token per Autopay credential and
serves it to clients that may read it. It requests as few tokens from Autopay
as possible, and replaces each token before it expires, by default at 75% of its
lifetime.

Write a client ID and secret to "config", then read "token". Use "rotate" to
replace the token immediately, and "status" or "metrics" to monitor it. To
manage several credentials in one mount, append a name to the path, such as
"config/NAME".
`

// # What Vault calls
//
// Vault calls four things. HandleRequest is for requests and, under another operation,
// for the tick of every minute. Initialize comes after a start or unseal and blocks it,
// Invalidate when another node has written to storage, Clean at the end of the mount.
// Each returns at once, or as soon as the answer is there: Vault holds locks of its own
// around all of them.
//
// HandleRequest and HandleExistenceCheck stand before the SDK's framework for three
// reasons: most reads of a token are answered without it; it quotes values of the wrong
// type, which may be secrets; and all errors become responses in one place.

// backend is what Vault calls: the paths of one mount, and the callbacks of the SDK.
type backend struct {
	*framework.Backend
	*mount
}

// Factory makes the backend of one mount. It implements logical.Factory.
func Factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	return newBackend(ctx, conf, options{})
}

// newBackend is Factory with the options that tests need. If it returns an error, nothing
// that it started is left.
func newBackend(ctx context.Context, conf *logical.BackendConfig, opts options) (*backend, error) {
	m := &mount{environment: newEnvironment(ctx, conf, opts)}
	b := &backend{mount: m}
	b.Backend = &framework.Backend{
		BackendType:    logical.TypeLogical,
		Help:           strings.TrimSpace(backendHelp),
		RunningVersion: version,
		PathsSpecial: &logical.Paths{
			SealWrapStorage: []string{configPrefix, tokenPrefix},
			LocalStorage:    []string{tokenPrefix},
		},
		Paths: []*framework.Path{
			m.pathConfigList(),
			m.pathConfig(),
			m.pathToken(),
			m.pathRotate(),
			m.pathStatus(),
			m.pathMetrics(),
		},
		InitializeFunc: func(context.Context, *logical.InitializationRequest) error { m.loadAll(); return nil },
		PeriodicFunc:   func(context.Context, *logical.Request) error { m.watch(); return nil },
		Invalidate:     func(_ context.Context, key string) { m.changedElsewhere(key) },
		Clean:          b.clean,
	}
	if err := b.Setup(ctx, conf); err != nil {
		m.close()
		return nil, err
	}
	return b, nil
}

// HandleRequest implements logical.Backend. It answers most reads of a token
// itself, and keeps wrong types from the SDK's check, which would quote them.
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if resp := b.hotRead(req); resp != nil {
		return resp, nil
	}
	if path := req.MountPoint; path != "" && path != b.mountPath() {
		b.path.Store(&path) // a copy: the request may hold a secret
	}
	if strings.HasPrefix(req.Path, "config") {
		// Terraform sends null for an attribute that is not set.
		maps.DeleteFunc(req.Data, func(_ string, value any) bool { return value == nil })
		if err := new(configEntry).setFields(req.Data); err != nil {
			return logical.ErrorResponse(err.Error()), nil
		}
	}
	resp, err := b.Backend.HandleRequest(ctx, req)
	if err != nil {
		return respondError(err)
	}
	if req.Operation == logical.HelpOperation && resp != nil {
		resp.Data["openapi"] = withPlainRefs(resp.Data["openapi"])
	}
	return resp, err
}

var ref = regexp.MustCompile(`"\$ref":("[^"]*")`)

// withPlainRefs adds to an OpenAPI document a "ref" beside each "$ref". Vault
// decodes the document of an external plugin by the names of struct fields, to
// which "$ref" is unknown (hashicorp/vault issue 30714), and would lose the
// schemas of requests and responses.
func withPlainRefs(document any) any {
	text, err := json.Marshal(document)
	if err != nil {
		return document
	}
	var plain map[string]any
	if json.Unmarshal(ref.ReplaceAll(text, []byte(`"$$ref":$1,"ref":$1`)), &plain) != nil {
		return document
	}
	return plain
}

// HandleExistenceCheck implements logical.Backend. It asks about the path alone:
// the SDK would quote data of the wrong type into the server's log.
func (b *backend) HandleExistenceCheck(ctx context.Context, req *logical.Request) (found, exists bool, err error) {
	bare := *req
	bare.Data = nil
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

// clean ends everything that the backend started.
func (b *backend) clean(context.Context) { b.close() }
