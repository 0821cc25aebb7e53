// Command pack puts the files of a directory into an archive that depends on
// their names and contents alone: same files, same bytes, whoever packs them,
// where and when.
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
	"strconv"
	"time"
)

const usage = "usage: SOURCE_DATE_EPOCH=SECONDS pack tar.gz|zip DIRECTORY >ARCHIVE"

func main() {
	if err := run(os.Args[1:], os.Getenv("SOURCE_DATE_EPOCH"), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

// run packs the directory args[1] in the format args[0]. Every file gets the
// time epoch, Unix seconds (reproducible-builds.org/specs/source-date-epoch).
func run(args []string, epoch string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New(usage)
	}
	write, known := map[string]func(io.Writer, []file, time.Time) error{"tar.gz": writeTar, "zip": writeZip}[args[0]]
	if !known {
		return errors.New(usage)
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	files, err := list(os.DirFS(args[1]))
	if err != nil {
		return err
	}
	return write(out, files, time.Unix(seconds, 0).UTC())
}

// file is what goes into the archive: no owner, no time, no mode but these two.
type file struct {
	name    string
	mode    fs.FileMode // 0755 or 0644
	content []byte
}

// list reads the files of a directory in the order of their names.
func list(dir fs.FS) ([]file, error) {
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, err
	}
	var files []file
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is not a regular file", entry.Name())
		}
		content, err := fs.ReadFile(dir, entry.Name())
		if err != nil {
			return nil, err
		}
		mode := fs.FileMode(0o644)
		if info.Mode()&0o100 != 0 { // the owner's bit: the others are the umask's
			mode = 0o755
		}
		files = append(files, file{entry.Name(), mode, content})
	}
	return files, nil
}

func writeTar(w io.Writer, files []file, at time.Time) error {
	zw := gzip.NewWriter(w) // its header names no file and no time
	tw := tar.NewWriter(zw)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: int64(f.mode), Size: int64(len(f.content)), ModTime: at, Format: tar.FormatUSTAR}
		if err := tw.WriteHeader(header); err != nil {
			return err
		}
		if _, err := tw.Write(f.content); err != nil {
			return err
		}
	}
	return errors.Join(tw.Close(), zw.Close())
}

func writeZip(w io.Writer, files []file, at time.Time) error {
	zw := zip.NewWriter(w)
	for _, f := range files {
		header := &zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: at}
		header.SetMode(f.mode)
		entry, err := zw.CreateHeader(header)
		if err != nil {
			return err
		}
		if _, err := entry.Write(f.content); err != nil {
			return err
		}
	}
	return zw.Close()
}
