package manifests

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The modules of Vault Secrets Operator and vault-k8s are not published where
// Go modules come from, so what the examples use of their types is written down
// here. Sources: hashicorp/vault-secrets-operator, chart/crds (v1beta1);
// hashicorp/vault-k8s, agent-inject/agent/annotations.go.

type vaultConnection struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		Address         string `json:"address"`
		CACertSecretRef string `json:"caCertSecretRef"`
	} `json:"spec"`
}

type vaultAuth struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		VaultConnectionRef string  `json:"vaultConnectionRef"`
		Method             keyword `json:"method"`
		Mount              string  `json:"mount"`
		Kubernetes         struct {
			Role           string   `json:"role"`
			ServiceAccount string   `json:"serviceAccount"`
			Audiences      []string `json:"audiences"`
		} `json:"kubernetes"`
	} `json:"spec"`
}

type vaultDynamicSecret struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		VaultAuthRef     string `json:"vaultAuthRef"`
		Mount            string `json:"mount"`
		Path             string `json:"path"`
		AllowStaticCreds bool   `json:"allowStaticCreds"`
		Destination      struct {
			Name           string `json:"name"`
			Create         bool   `json:"create"`
			Transformation struct {
				ExcludeRaw bool     `json:"excludeRaw"`
				Excludes   []string `json:"excludes"`
				Templates  map[string]struct {
					Text string `json:"text"`
				} `json:"templates"`
			} `json:"transformation"`
		} `json:"destination"`
		RolloutRestartTargets []struct {
			Kind keyword `json:"kind"`
			Name string  `json:"name"`
		} `json:"rolloutRestartTargets"`
	} `json:"spec"`
}

// keyword is one of the values that the operator's schemas allow.
type keyword string

func (k *keyword) UnmarshalJSON(text []byte) error {
	var word string
	if err := json.Unmarshal(text, &word); err != nil {
		return err
	}
	known := []string{"kubernetes", "jwt", "appRole", "aws", "gcp", "Deployment", "DaemonSet", "StatefulSet", "argo.Rollout"}
	if !slices.Contains(known, word) {
		return fmt.Errorf("%q is none of %q", word, known)
	}
	*k = keyword(word)
	return nil
}

const injector = "vault.hashicorp.com/"

// Annotations of the injector: those that stand alone, and those that end in
// the name of a secret.
var (
	annotations = []string{"agent-inject", "role", "agent-run-as-same-user", "agent-service-account-token-volume-name"}
	ofASecret   = []string{"agent-inject-secret-", "agent-inject-template-", "agent-inject-perms-"}
)

func checkAnnotations(all map[string]string) error {
	for key := range all {
		name, ok := strings.CutPrefix(key, injector)
		if !ok {
			return fmt.Errorf("annotation %s is not the injector's", key)
		}
		if slices.Contains(annotations, name) {
			continue
		}
		at := slices.IndexFunc(ofASecret, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		if at < 0 {
			return fmt.Errorf("the injector knows no annotation %s", key)
		}
		secret := strings.TrimPrefix(name, ofASecret[at])
		if _, ok := all[injector+"agent-inject-secret-"+secret]; !ok {
			return fmt.Errorf("annotation %s is for a secret that no annotation names", key)
		}
	}
	return nil
}
