package main

import (
	"context"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// Events for Vault's event system, named as those of Vault's own engines are.
const (
	eventRotate       = "autopay/rotate"             // a new token is served
	eventRotateFail   = "autopay/rotate-fail"        // an attempt to obtain one failed
	eventRefused      = "autopay/credential-refused" // it failed, for Autopay refused the credential
	eventConfigWrite  = "autopay/config-write"
	eventConfigDelete = "autopay/config-delete"
)

// eventTimeout ends the sending of an event to a host that does not take it.
const eventTimeout = 10 * time.Second

// event tells Vault's event system about a path of the credential, without
// waiting. Best effort: where nobody listens, or the host has no events
// (OpenBao), nothing is amiss.
func (c *credential) event(kind, path, modified string) {
	if c.name != defaultName {
		path += "/" + c.name
	}
	metadata := []string{
		"name", c.name,
		logical.EventMetadataPath, path,
		logical.EventMetadataDataPath, path,
		logical.EventMetadataOperation, kind[len("autopay/"):],
		logical.EventMetadataModified, modified,
	}
	c.b.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, eventTimeout)
		defer cancel()
		if err := logical.SendEvent(ctx, c.b, kind, metadata...); err != nil {
			c.b.log(c.name).Trace("an event was not sent", "event_type", kind, "error", err)
		}
	})
}

// announce sends the event of a change from one snapshot to the next.
func (c *credential) announce(from, to *snapshot) {
	before, f := from.entry.Failure, to.entry.Failure
	failed := f != nil && (before == nil || !f.Time.Equal(before.Time))
	switch {
	case failed && f.Status == http.StatusBadGateway:
		c.event(eventRefused, tokenPath, "false")
	case failed:
		c.event(eventRotateFail, tokenPath, "false")
	case to.entry.AccessToken != from.entry.AccessToken && to.entry.AccessToken != "":
		c.event(eventRotate, tokenPath, "true")
	}
}
