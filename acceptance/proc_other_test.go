//go:build acceptance && !linux

package acceptance

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
)

func dieWithTests(*exec.Cmd) {}

// children returns the processes started by parent, by the path of their
// executable.
func children(parent int) (map[int]string, error) {
	out, err := exec.CommandContext(context.Background(), "ps", "-A", "-o", "pid=,ppid=,comm=").Output()
	if err != nil {
		return nil, err
	}

	found := map[int]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		pid, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, err
		}
		found[pid] = fields[2]
	}
	return found, nil
}
