// Command vault-plugin-secrets-autopay is a HashiCorp Vault secrets engine that
// serves Autopay bearer tokens. Vault starts it; run by hand, it only prints
// its version (-version) or says that it is a plugin.
//
// Operators store a client ID and secret at autopay/config. The engine trades
// them for a short-lived token at Autopay, keeps the token, replaces it before
// it expires, and serves it at autopay/token. Autopay may end the access of
// those who request too many tokens, so everything here serves one aim: request as
// few as possible, never hand out an expired token, and never make a reader wait
// while a live one exists.
//
// # The rules of a token's life
//
// Comments and tests cite these rules by their numbers.
//
//  1. A read never waits for Autopay while a live token exists. It is answered
//     from memory: without a lock held across I/O, without a storage read, and
//     without a call back into Vault.
//  2. At most one request to Autopay is in flight per credential. Readers
//     without a live token share it, and a reader who leaves does not cancel it.
//  3. A token is refreshed before it expires, with or without readers. A timer
//     starts the refresh when it is due; Vault's periodic call starts what the
//     timer missed. At most 32 refreshes of a mount run at a time.
//  4. A token is live until 30 s before it expires (5% of its lifetime if that is
//     shorter). A token that is not live is never handed out. While the process
//     runs, neither a clock step nor a suspended machine extends a token's life.
//  5. While Autopay fails, the live token is served with a warning. Retries back
//     off, for longer if they may cost a token, and need no reader. Readers without
//     a live token get the last error at once; they cause no request.
//  6. Storage is the truth. A token is stored before it is served, so it
//     survives restarts, failovers and upgrades.
//  7. A token belongs to the settings it was issued for. Both are stored under
//     one random generation, settings first, and a token of another generation
//     is never served.
//  8. Every request is entered in a stored ledger before it is sent. At the
//     limit (token_request_limit in 24 hours) no request is sent. A request
//     that certainly brought no token is removed from the ledger.
//  9. When storage fails after Autopay has answered, the new token is served
//     from memory and stored later. No other one is requested.
//  10. A node that may not write never asks Autopay. It serves the live token it
//     finds in storage, or returns logical.ErrReadOnly so that Vault passes the
//     request on to a node that may.
//
// # Where to start reading
//
// Read from the bottom up: client.go is one exchange with Autopay,
// token_entry.go and config_entry.go are what storage keeps, and snapshot.go
// answers every question about time and state. Then credential.go and jobs.go,
// where the concurrency is, and path_token.go, the read path that all other code
// serves.
//
// The files form layers, from top to bottom, and each only uses files in its own
// layer or lower ones:
//
//	main.go
//	backend.go                         what Vault calls
//	path_*.go, response.go             the API, a path each
//	mount.go                           the credentials of one mount
//	credential.go, jobs.go             one credential: its concurrency, its jobs
//	storage.go, environment.go         what a credential needs of its mount
//	snapshot.go                        a credential as readers see it
//	token_entry.go, config_entry.go    what storage keeps
//	schedule.go, clock.go
//	client.go                          the exchange with Autopay
package main
