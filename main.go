package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/plugin"
)

// main serves the engine to the Vault that has started it. One process serves all mounts
// of the plugin (multiplexing), so a mount's state is in its backend and nothing is
// global. It logs everything as JSON: Vault filters by its own log level. Started by hand,
// go-plugin explains that this is a plugin, and exits.
func main() {
	if len(os.Args) == 2 && (os.Args[1] == "-version" || os.Args[1] == "--version") {
		fmt.Fprintln(os.Stdout, version)
		return
	}
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, JSONFormat: true})
	if err := plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: Factory, Logger: logger}); err != nil {
		logger.Error("plugin server ended", "error", err)
		os.Exit(1)
	}
}
