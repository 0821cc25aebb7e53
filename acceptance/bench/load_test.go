//go:build acceptance && bench && linux

package bench

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// target is what a load reads: paths of one server, which the readers read in turn.
type target struct {
	name     string
	server   *harness.Server
	requests [][]byte // as sent over the wire
	expect   []byte   // a part of every good answer
	plugin   int      // the process that answers; 0: the server itself
}

func newTarget(name string, s *harness.Server, expect string, plugin int, paths ...string) target {
	t := target{name: name, server: s, expect: []byte(expect), plugin: plugin}
	for _, path := range paths {
		t.requests = append(t.requests, fmt.Appendf(nil, "GET /v1/%s HTTP/1.1\r\nHost: %s\r\nX-Vault-Token: %s\r\nX-Vault-Request: true\r\n\r\n",
			path, strings.TrimPrefix(s.Addr, "http://"), s.RootToken))
	}
	return t
}

// round is the result of one load.
type round struct {
	rate     float64       // reads a second
	p50, p99 time.Duration // of a read, as the reader sees it
	// Processor time that one read took, of Vault, the plugin and the readers.
	vault, plugin, reader time.Duration
}

// load runs readers in a closed loop, each on a connection of its own. It does not
// count the reads of the warm-up.
func load(t *testing.T, on target, readers int, warm, measure time.Duration) round {
	t.Helper()
	var before, after [3]time.Duration
	began := time.Now().Add(warm)
	ended := began.Add(measure)
	samples := readUntil(t, on, readers, ended, func() {
		time.Sleep(time.Until(began))
		before = on.processorTimes(t)
		time.Sleep(time.Until(ended))
		after = on.processorTimes(t)
	})
	times := between(samples, began, ended)
	if len(times) < 100 {
		t.Fatalf("%s, %d readers: %d reads in %v", on.name, readers, len(times), measure)
	}
	each := func(i int) time.Duration { return (after[i] - before[i]) / time.Duration(len(times)) }
	return round{
		rate: float64(len(times)) / measure.Seconds(), p50: quantile(times, .5), p99: quantile(times, .99),
		vault: each(0), plugin: each(1), reader: each(2),
	}
}

// readUntil returns every read of the readers until the end, while beside runs.
func readUntil(t *testing.T, on target, readers int, end time.Time, beside func()) []sample {
	t.Helper()
	samples, loops := make([][]sample, readers), sync.WaitGroup{}
	for i := range readers {
		loops.Go(func() {
			r, err := dial(on.server.Addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.conn.Close()
			samples[i] = make([]sample, 0, 1<<14)
			// With a prime stride each reader has an order of its own.
			for n := i * len(on.requests) / readers; ; n += 7919 {
				sent := time.Now()
				if sent.After(end) {
					return
				}
				if err := r.get(on.requests[n%len(on.requests)], on.expect); err != nil {
					t.Errorf("%s: %v", on.name, err)
					return
				}
				samples[i] = append(samples[i], sample{sent, time.Since(sent)})
			}
		})
	}
	beside()
	loops.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return slices.Concat(samples...)
}

// reader is an HTTP/1.1 client that does only what the load needs, because it
// shares the machine with what it measures.
type reader struct {
	conn net.Conn
	in   *bufio.Reader
	body []byte
}

func dial(addr string) (*reader, error) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(addr, "http://")) //nolint:noctx // loopback
	if err != nil {
		return nil, err
	}
	return &reader{conn: conn, in: bufio.NewReader(conn)}, nil
}

// get sends a request and reads its answer, which must be a 200 that holds expect.
// It can't read answers of more than 2 KiB, which come in chunks.
func (r *reader) get(request, expect []byte) error {
	if _, err := r.conn.Write(request); err != nil {
		return err
	}
	status, length := "", -1
	for {
		line, err := r.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if status == "" {
			status = string(line)
		} else if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New(status + ", without a length")
	}
	r.body = slices.Grow(r.body[:0], length)[:length]
	for read := 0; read < length; {
		n, err := r.in.Read(r.body[read:])
		if err != nil {
			return err
		}
		read += n
	}
	if status != "HTTP/1.1 200 OK" || !bytes.Contains(r.body, expect) {
		return fmt.Errorf("%s: %s", status, r.body)
	}
	return nil
}

// processorTimes returns the processor time that Vault, the plugin and this process
// have used since they started.
func (on target) processorTimes(t *testing.T) [3]time.Duration {
	t.Helper()
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		t.Fatal(err)
	}
	times := [3]time.Duration{2: time.Duration(self.Utime.Nano() + self.Stime.Nano())}
	for i, pid := range []int{on.server.PID(), on.plugin} {
		if pid == 0 {
			continue
		}
		stat := harness.ReadFile(t, fmt.Sprintf("/proc/%d/stat", pid))
		// proc(5): utime and stime are 14 and 15, in ticks of 10 ms; the name, 2, may hold anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		for _, field := range fields[11:13] {
			ticks, err := strconv.Atoi(string(field))
			if err != nil {
				t.Fatal(err)
			}
			times[i] += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return times
}

// memory returns the resident memory of a process in MB, without the pages of its
// executable, which the kernel shares and drops as it likes.
func memory(t *testing.T, pid int) float64 {
	t.Helper()
	return float64(harness.ProcStatus(t, pid, "RssAnon")) * 1024 / 1e6 // from KiB
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// figure is the median of several rounds, with the least and the most.
type figure[T cmp.Ordered] struct{ median, least, most T }

func over[R any, T cmp.Ordered](rounds []R, of func(R) T) figure[T] {
	values := make([]T, len(rounds))
	for i, r := range rounds {
		values[i] = of(r)
	}
	slices.Sort(values)
	return figure[T]{values[len(values)/2], values[0], values[len(values)-1]}
}

// ratio is that of two figures within each round.
func ratio[T int64 | float64 | time.Duration](a, b []round, of func(round) T) figure[float64] {
	pairs := make([][2]round, len(a))
	for i := range a {
		pairs[i] = [2]round{a[i], b[i]}
	}
	return over(pairs, func(p [2]round) float64 { return float64(of(p[0])) / float64(of(p[1])) })
}
