//go:build acceptance && !linux

package harness

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
)

// DieWithTests does nothing here: only Linux can kill a process when its parent
// dies.
func DieWithTests(*exec.Cmd) {}

// children returns the processes that parent started: the path of each
// executable, by process ID.
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
