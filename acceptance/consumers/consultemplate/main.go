// Command consultemplate reads one secret as consul-template does, and prints
// how long its own code would wait before it reads again.
//
//	VAULT_ADDR=… VAULT_TOKEN=… consultemplate autopay/token
//
// It is a module of its own, so that consul-template's dependencies do not mix
// with ours.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"os"
	"regexp"
	"time"

	"github.com/hashicorp/consul-template/dependency"
)

// sleepLine is what VaultReadQuery.Fetch logs of the wait that leaseCheckWait
// gave it (dependency/vault_read.go); both are unexported.
var sleepLine = regexp.MustCompile(`set sleep for (\S+)`)

func main() {
	wait, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, wait.Seconds())
}

func run() (time.Duration, error) {
	if len(os.Args) != 2 {
		return 0, errors.New("usage: consultemplate PATH")
	}
	clients := dependency.NewClientSet()
	err := clients.CreateVaultClient(&dependency.CreateVaultClientInput{
		Address: os.Getenv("VAULT_ADDR"),
		Token:   os.Getenv("VAULT_TOKEN"),
	})
	if err != nil {
		return 0, err
	}
	// What the templates' runner sets from its configuration, here its defaults.
	dependency.SetVaultDefaultLeaseDuration(5 * time.Minute)
	dependency.SetVaultLeaseRenewalThreshold(0.9)

	query, err := dependency.NewVaultReadQuery(os.Args[1])
	if err != nil {
		return 0, err
	}
	var trace bytes.Buffer
	log.SetOutput(&trace)
	if _, _, err := query.Fetch(clients, &dependency.QueryOptions{}); err != nil {
		return 0, err
	}
	found := sleepLine.FindSubmatch(trace.Bytes())
	if found == nil {
		return 0, errors.New("consul-template does not say how long it waits")
	}
	return time.ParseDuration(string(found[1]))
}
