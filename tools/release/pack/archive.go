package main

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"testing/fstest"
	"time"
)

// tree returns the files under dir without what differs between two builders:
// owners, times, and modes other than 0755 and 0644. The file systems of fstest
// are in memory, and AddFS of both archive packages walks them in the order of
// the names.
func tree(dir string, at time.Time) (fstest.MapFS, error) {
	files := fstest.MapFS{}
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		file := &fstest.MapFile{Mode: 0o644, ModTime: at}
		switch {
		case info.IsDir():
			file.Mode = fs.ModeDir | 0o755
		case !info.Mode().IsRegular():
			return fmt.Errorf("%s is not a regular file", path)
		default:
			if info.Mode()&0o100 != 0 { // the owner's bit: the others follow the umask
				file.Mode = 0o755
			}
			if file.Data, err = fs.ReadFile(root, path); err != nil {
				return err
			}
		}
		files[path] = file
		return nil
	})
	return files, err
}

// writeTar writes an uncompressed archive.
func writeTar(out io.Writer, files fs.FS) error {
	w := tar.NewWriter(out)
	if err := w.AddFS(files); err != nil {
		return err
	}
	return w.Close()
}

func writeTarGz(out io.Writer, dir string, at time.Time) error {
	files, err := tree(dir, at)
	if err != nil {
		return err
	}
	w := gzip.NewWriter(out) // its header holds neither name nor time
	return errors.Join(writeTar(w, files), w.Close())
}

func writeZip(out io.Writer, dir string, at time.Time) error {
	files, err := tree(dir, at)
	if err != nil {
		return err
	}
	w := zip.NewWriter(out)
	return errors.Join(w.AddFS(files), w.Close())
}
