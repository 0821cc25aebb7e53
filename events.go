package main

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// eventTimeout ends the sending of an event that Vault does not take.
const eventTimeout = 10 * time.Second

// An event is a kind of event for Vault's event system, named as those of
// Vault's own engines are.
type event struct {
	kind     string // autopay/OPERATION
	path     string // within the mount, without the credential's name
	modified string // whether the data at path has changed: "true" or "false"
}

var (
	eventRotate       = event{"autopay/rotate", "token", "true"}              // a new token is served
	eventRotateFail   = event{"autopay/rotate-fail", "token", "false"}        // an attempt to obtain one failed
	eventRefused      = event{"autopay/credential-refused", "token", "false"} // Autopay refused the credential
	eventConfigWrite  = event{"autopay/config-write", "config", "true"}
	eventConfigDelete = event{"autopay/config-delete", "config", "true"}
)

// send tells Vault's event system about a credential, without waiting. It is
// best effort: nobody may be listening, and OpenBao has no events.
func (n *node) send(e event, name string) {
	if n.events == nil {
		return
	}
	path := e.path
	if name != defaultName {
		path += "/" + name
	}
	metadata := []string{
		"name", name,
		logical.EventMetadataPath, path,
		logical.EventMetadataDataPath, path,
		logical.EventMetadataOperation, strings.TrimPrefix(e.kind, "autopay/"),
		logical.EventMetadataModified, e.modified,
	}
	n.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, eventTimeout)
		defer cancel()
		if err := logical.SendEvent(ctx, n.events, e.kind, metadata...); err != nil {
			n.log(name).Trace("an event was not sent", "event_type", e.kind, "error", err)
		}
	})
}

// sendChange sends the event of a change from one snapshot to the next, if it
// is one that others want to know of.
func (n *node) sendChange(name string, from, to *snapshot) {
	last, f := from.entry.Failure, to.entry.Failure
	failed := f != nil && (last == nil || !f.Time.Equal(last.Time))
	switch {
	case failed && f.Kind == refused:
		n.send(eventRefused, name)
	case failed:
		n.send(eventRotateFail, name)
	case to.entry.AccessToken != from.entry.AccessToken && to.entry.AccessToken != "":
		n.send(eventRotate, name)
	}
}
