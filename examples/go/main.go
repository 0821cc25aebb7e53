// A demonstration of package autopay: posts each line of its input to API_URL and prints the status. With -short it uses
// the short client.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/vault/api"
	"golang.org/x/oauth2"

	"example/autopay"
)

func main() {
	vault, err := api.NewClient(nil) // by VAULT_ADDR, VAULT_TOKEN and so on
	if err != nil {
		log.Fatal(err)
	}
	if file := os.Getenv("VAULT_TOKEN_FILE"); file != "" {
		vault = vault.WithRequestCallbacks(func(r *api.Request) {
			token, _ := os.ReadFile(file) // each time, for Vault Agent renews it; without it Vault refuses the request
			r.ClientToken = strings.TrimSpace(string(token))
		})
	}
	source := &autopay.TokenSource{Vault: vault, Path: os.Getenv("AUTOPAY_PATH"), RotatePath: os.Getenv("AUTOPAY_ROTATE_PATH")}
	client := source.Client()
	if len(os.Args) > 1 && os.Args[1] == "-short" {
		client = oauth2.NewClient(context.Background(), autopay.NewTokenSource(vault, os.Getenv("AUTOPAY_PATH")))
	}

	var calls sync.WaitGroup
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		body := lines.Text()
		calls.Go(func() { fmt.Fprintln(os.Stdout, post(client, body)) })
	}
	calls.Wait()
}

func post(client *http.Client, body string) string {
	resp, err := client.Post(os.Getenv("API_URL"), "text/plain", strings.NewReader(body))
	if err != nil {
		return strings.Join(strings.Fields(err.Error()), " ")
	}
	defer resp.Body.Close()
	return strconv.Itoa(resp.StatusCode)
}
