// Command pack writes what a release consists of beside its binaries: archives
// and a container image. Its output depends on its input alone. The same files
// make the same bytes, whoever packs them, where and when.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

const usage = `usage: SOURCE_DATE_EPOCH=SECONDS pack tar.gz|zip DIRECTORY >ARCHIVE
       SOURCE_DATE_EPOCH=SECONDS pack image -version VERSION -revision COMMIT [-source URL] ARCH=BINARY... >LAYOUT.tar`

func main() {
	if err := run(os.Args[1:], os.Getenv("SOURCE_DATE_EPOCH"), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

// run writes the format args[0] to out. Every file in it carries the time
// epoch, in Unix seconds (reproducible-builds.org/specs/source-date-epoch).
func run(args []string, epoch string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	at := time.Unix(seconds, 0).UTC()

	switch format := args[0]; {
	case format == "image":
		return writeImage(out, args[1:], at)
	case len(args) != 2:
		return errors.New(usage)
	case format == "tar.gz":
		return writeTarGz(out, args[1], at)
	case format == "zip":
		return writeZip(out, args[1], at)
	}
	return errors.New(usage)
}
