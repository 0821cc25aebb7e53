//go:build acceptance

package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// DieWithTests has the kernel kill a process, not yet started, when the test
// binary dies, for example of a timeout. Only Linux can do this.
func DieWithTests(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// children returns the running processes that parent started: the path of each
// executable, by process ID.
func children(parent int) (map[int]string, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}

	found := map[int]string{}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // the process has ended meanwhile
		}
		// proc(5): "pid (comm) state ppid …"; comm may hold anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if string(fields[0]) == "Z" || string(fields[1]) != strconv.Itoa(parent) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			continue
		}
		found[pid] = exe
	}
	return found, nil
}

// ProcStatus returns a field of /proc/PID/status, such as VmRSS, without its unit.
func ProcStatus(tb testing.TB, pid int, field string) int {
	tb.Helper()
	for line := range strings.Lines(string(ReadFile(tb, fmt.Sprintf("/proc/%d/status", pid)))) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				tb.Fatal(err)
			}
			return n
		}
	}
	tb.Fatalf("no %s in the status of process %d", field, pid)
	return 0
}
