package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const epoch = "1767000000"

// release writes the files of a release as two builders may have them: modes by
// their umask, times by their clock.
func release(t *testing.T, umask os.FileMode, at time.Time) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"plugin": 0o777, "LICENSE": 0o666, "README.md": 0o666} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("the "+name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chmod(path, mode&^umask), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func pack(t *testing.T, args ...string) []byte {
	t.Helper()
	var archive bytes.Buffer
	if err := run(args, epoch, &archive); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

func TestPackIsReproducible(t *testing.T) {
	t.Parallel()
	for format, args := range map[string][]string{"tar.gz": {""}, "zip": {""}, "image": imageArgs} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			packed := func(dir string) []byte {
				args := slices.Clone(args)
				args[len(args)-1] += dir
				if format == "image" {
					args[len(args)-1] += "/plugin"
				}
				return pack(t, append([]string{format}, args...)...)
			}
			first := packed(release(t, 0o022, time.Unix(1e9, 0)))
			second := packed(release(t, 0o077, time.Unix(2e9, 5)))
			if !bytes.Equal(first, second) {
				t.Error("other times and another umask make another archive")
			}
		})
	}
}

// entry is what an archive holds of a file.
type entry struct {
	name    string
	mode    os.FileMode
	at      int64
	content string
}

var want = []entry{
	{"LICENSE", 0o644, 1767000000, "the LICENSE"},
	{"README.md", 0o644, 1767000000, "the README.md"},
	{"plugin", 0o755, 1767000000, "the plugin"},
}

func compare(t *testing.T, got []entry) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("holds %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("holds %v, want %v", got[i], want[i])
		}
	}
}

func TestTar(t *testing.T) {
	t.Parallel()
	zr, err := gzip.NewReader(bytes.NewReader(pack(t, "tar.gz", release(t, 0, time.Now()))))
	if err != nil {
		t.Fatal(err)
	}
	var got []entry
	for tr := tar.NewReader(zr); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 || header.Uname+header.Gname != "" {
			t.Errorf("%s has an owner", header.Name)
		}
		got = append(got, entry{header.Name, os.FileMode(header.Mode), header.ModTime.Unix(), string(content)})
	}
	compare(t, got)
}

func TestZip(t *testing.T) {
	t.Parallel()
	content := pack(t, "zip", release(t, 0, time.Now()))
	zr, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	var got []entry
	for _, f := range zr.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, entry{f.Name, f.Mode(), f.Modified.Unix(), string(text)})
	}
	compare(t, got)
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	dir := release(t, 0, time.Now())
	linked := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(linked, "inner")); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args        []string
		epoch, want string
	}{
		"no arguments":     {nil, epoch, "usage"},
		"no epoch":         {[]string{"zip", dir}, "", "SOURCE_DATE_EPOCH"},
		"another format":   {[]string{"rar", dir}, epoch, "usage"},
		"no directory":     {[]string{"zip", dir + "/none"}, epoch, "no such file"},
		"a link":           {[]string{"zip", linked}, epoch, "inner is not a regular file"},
		"no version":       {[]string{"image", "-revision", "1", "amd64=" + dir + "/plugin"}, epoch, "usage"},
		"no binary":        {[]string{"image", "-version", "v1", "-revision", "1"}, epoch, "usage"},
		"no architecture":  {[]string{"image", "-version", "v1", "-revision", "1", dir + "/plugin"}, epoch, "usage"},
		"a missing binary": {[]string{"image", "-version", "v1", "-revision", "1", "arm64=none"}, epoch, "arm64: open none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := run(test.args, test.epoch, io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one about %s", err, test.want)
			}
		})
	}
}
