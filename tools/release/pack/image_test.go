package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var imageArgs = []string{"-version", "v1.2.3", "-revision", "c0ffee", "-source", "https://example.com/plugin", "amd64="}

// unpack writes the files of an archive to a directory and returns their headers.
func unpack(t *testing.T, archive io.Reader) (string, map[string]*tar.Header) {
	t.Helper()
	dir, headers := t.TempDir(), map[string]*tar.Header{}
	for tr := tar.NewReader(archive); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return dir, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers[header.Name] = header
		path := filepath.Join(dir, header.Name)
		if header.Typeflag == tar.TypeDir {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	plugin := filepath.Join(release(t, 0, time.Now()), "plugin")
	args := append([]string{"image"}, imageArgs[:6]...)
	dir, _ := unpack(t, bytes.NewReader(pack(t, append(args, "arm64="+plugin, "amd64="+plugin)...)))
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(top); err != nil {
		t.Error(err)
	}
	entries, err := top.IndexManifest()
	if err != nil || len(entries.Manifests) != 1 || entries.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1.2.3" {
		t.Fatalf("the layout holds %+v (%v)", entries, err)
	}
	index, err := top.ImageIndex(entries.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	checkAnnotations(t, "index", manifest.Annotations)

	var platforms []string
	for _, entry := range manifest.Manifests {
		platforms = append(platforms, entry.Platform.String())
		image, err := index.Image(entry.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, entry.Platform.String(), image)
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
		t.Errorf("the index holds %v, want %v", platforms, want)
	}
}

func checkAnnotations(t *testing.T, of string, annotations map[string]string) {
	t.Helper()
	for key, want := range map[string]string{
		"title": pluginName, "version": "v1.2.3", "revision": "c0ffee", "source": "https://example.com/plugin",
		"created": "2025-12-29T09:20:00Z", "licenses": "MPL-2.0",
	} {
		if got := annotations["org.opencontainers.image."+key]; got != want {
			t.Errorf("%s: %s is %q, want %q", of, key, got, want)
		}
	}
}

func checkImage(t *testing.T, platform string, image v1.Image) {
	t.Helper()
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	checkAnnotations(t, platform, manifest.Annotations)
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	checkAnnotations(t, platform+"'s labels", config.Config.Labels)
	if config.OS+"/"+config.Architecture != platform || config.Config.User != "65532:65532" ||
		!slices.Equal(config.Config.Entrypoint, []string{"/" + pluginName}) || config.Created.Unix() != 1767000000 {
		t.Errorf("%s is configured as %+v", platform, config)
	}

	files := mutate.Extract(image)
	defer files.Close()
	root, headers := unpack(t, files)
	for name, mode := range map[string]int64{"etc": 0o755, "etc/ssl": 0o755, "etc/ssl/certs": 0o755, rootsPath: 0o644, pluginName: 0o755} {
		header := headers[name]
		if header == nil || header.Mode&0o777 != mode || header.ModTime.Unix() != 1767000000 || header.Uid+header.Gid != 0 {
			t.Errorf("%s holds %s as %+v, want it with mode %o", platform, name, header, mode)
		}
		delete(headers, name)
	}
	if len(headers) > 0 {
		t.Errorf("%s holds more: %v", platform, headers)
	}
	if content, err := os.ReadFile(filepath.Join(root, pluginName)); err != nil || string(content) != "the plugin" {
		t.Errorf("%s holds another binary: %q (%v)", platform, content, err)
	}

	// Let's Encrypt, Google and Amazon: whichever of them the API uses, or moves to.
	wanted := map[string]bool{"ISRG Root X1": true, "GTS Root R1": true, "Amazon Root CA 1": true}
	rest, err := os.ReadFile(filepath.Join(root, rootsPath))
	if err != nil {
		t.Fatal(err)
	}
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		delete(wanted, certificate.Subject.CommonName)
	}
	if len(wanted) > 0 {
		t.Errorf("%s does not trust %v", platform, wanted)
	}
}
