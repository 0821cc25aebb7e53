package manifests

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"sigs.k8s.io/yaml"
)

// The module of External Secrets can't be required, since it has others inside
// that are not published; but it ships the schemas of its resources.
const (
	externalSecrets    = "github.com/external-secrets/external-secrets@v1.3.2"
	externalSecretsSum = "h1:u2J8RjlHIeF0oZCqtl92adI/uZWUwOesJIDkfql6LqQ="
)

var externalSecretsDir = sync.OnceValues(func() (string, error) {
	out, err := exec.CommandContext(context.Background(), "go", "mod", "download", "-json", externalSecrets).Output()
	if err != nil {
		return "", fmt.Errorf("download of %s: %w\n%s", externalSecrets, err, out)
	}
	var module struct{ Dir, Sum string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", err
	}
	if module.Sum != externalSecretsSum {
		return "", fmt.Errorf("%s has the checksum %s, want %s", externalSecrets, module.Sum, externalSecretsSum)
	}
	return module.Dir, nil
})

// checkCRD does to an object what an API server does with strict field
// validation: fill in defaults, refuse unknown fields, validate.
func checkCRD(file, version string, object []byte) error {
	dir, err := externalSecretsDir()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "config", "crds", "bases", file))
	if err != nil {
		return err
	}
	var definition apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(text, &definition); err != nil {
		return err
	}
	for _, v := range definition.Spec.Versions {
		if v.Name != version || !v.Served {
			continue
		}
		var props apiextensions.JSONSchemaProps
		if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.Schema.OpenAPIV3Schema, &props, nil); err != nil {
			return err
		}
		return validate(&props, object)
	}
	return fmt.Errorf("%s has no version %s", file, version)
}

func validate(props *apiextensions.JSONSchemaProps, object []byte) error {
	structural, err := schema.NewStructural(props)
	if err != nil {
		return err
	}
	validator, _, err := validation.NewSchemaValidator(props)
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := yaml.Unmarshal(object, &fields); err != nil {
		return err
	}
	unknown := pruning.PruneWithOptions(fields, structural, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	if len(unknown) > 0 {
		return fmt.Errorf("unknown fields %s", strings.Join(unknown, ", "))
	}
	defaulting.Default(fields, structural)
	return validation.ValidateCustomResource(nil, fields, validator).ToAggregate()
}
