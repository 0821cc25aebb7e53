package main

// version is what -version prints and what Vault shows as the running version.
// It is a variable so that a test can build the next one (-ldflags -X).
var version = "v0.1.0"
