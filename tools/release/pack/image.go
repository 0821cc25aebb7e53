package main

import (
	"bytes"
	"compress/gzip"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

const (
	pluginName = "vault-plugin-secrets-autopay"
	// By number: the image has no /etc/passwd.
	user = "65532:65532"
	// The first place where Go looks for root certificates on Linux.
	rootsPath = "etc/ssl/certs/ca-certificates.crt"
)

// writeImage writes an OCI image layout as a tar archive. It holds one index,
// which holds an image for each architecture. An image has no base: one layer
// has the root certificates, the other the binary.
func writeImage(out io.Writer, args []string, at time.Time) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	version := flags.String("version", "", "")
	revision := flags.String("revision", "", "")
	source := flags.String("source", "", "")
	if err := flags.Parse(args); err != nil || *version == "" || *revision == "" || flags.NArg() == 0 {
		return errors.New(usage)
	}

	// https://specs.opencontainers.org/image-spec/annotations/
	annotations := map[string]string{
		"org.opencontainers.image.title":       pluginName,
		"org.opencontainers.image.description": "HashiCorp Vault secrets engine for Autopay's API tokens",
		"org.opencontainers.image.licenses":    "MPL-2.0",
		"org.opencontainers.image.version":     *version,
		"org.opencontainers.image.revision":    *revision,
		"org.opencontainers.image.created":     at.Format(time.RFC3339),
	}
	if *source != "" {
		annotations["org.opencontainers.image.source"] = *source
	}

	binaries := map[string]string{}
	for _, arg := range flags.Args() {
		arch, file, found := strings.Cut(arg, "=")
		if !found {
			return errors.New(usage)
		}
		binaries[arch] = file
	}
	roots, err := newLayer(rootsPath, roots(), 0o644, at)
	if err != nil {
		return err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range slices.Sorted(maps.Keys(binaries)) {
		image, err := newImage(arch, binaries[arch], roots, annotations, at)
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	index = mutate.Annotations(index, annotations).(v1.ImageIndex)

	dir, err := os.MkdirTemp("", "pack-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	written, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	tag := map[string]string{"org.opencontainers.image.ref.name": *version}
	if err := written.AppendIndex(index, layout.WithAnnotations(tag)); err != nil {
		return err
	}
	files, err := tree(dir, at)
	if err != nil {
		return err
	}
	return writeTar(out, files)
}

// newImage returns the image of the binary at file.
func newImage(arch, file string, roots v1.Layer, annotations map[string]string, at time.Time) (v1.Image, error) {
	binary, err := os.ReadFile(file) //nolint:gosec // the caller says which file
	if err != nil {
		return nil, err
	}
	// OpenBao looks for the binary in the image's root directory.
	plugin, err := newLayer(pluginName, binary, 0o755, at)
	if err != nil {
		return nil, err
	}

	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS:           "linux",
		Architecture: arch,
		Created:      v1.Time{Time: at},
		RootFS:       v1.RootFS{Type: "layers"},
		Config:       v1.Config{User: user, Entrypoint: []string{"/" + pluginName}, Labels: annotations},
	})
	if err != nil {
		return nil, err
	}
	image, err = mutate.Append(image,
		mutate.Addendum{Layer: roots, History: v1.History{Created: v1.Time{Time: at}, CreatedBy: "Mozilla's root certificates"}},
		mutate.Addendum{Layer: plugin, History: v1.History{Created: v1.Time{Time: at}, CreatedBy: "the released binary"}},
	)
	if err != nil {
		return nil, err
	}
	return mutate.Annotations(image, annotations).(v1.Image), nil
}

// newLayer returns a layer with a single file and its directories, owned by root.
func newLayer(name string, content []byte, mode fs.FileMode, at time.Time) (v1.Layer, error) {
	files := fstest.MapFS{name: {Data: content, Mode: mode, ModTime: at}}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		files[dir] = &fstest.MapFile{Mode: fs.ModeDir | 0o755, ModTime: at}
	}
	var archive bytes.Buffer
	if err := writeTar(&archive, files); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer),
		tarball.WithCompressionLevel(gzip.DefaultCompression), tarball.WithCompressedCaching)
}

// roots returns the root certificates that Mozilla trusts for servers, as PEM.
// It leaves out those that Mozilla trusts with constraints, such as only for
// certificates issued before a date: a file of certificates can't express them.
func roots() []byte {
	var text bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a buffer takes it
		}
	}
	return text.Bytes()
}
