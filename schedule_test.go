package main

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseSchedule(t *testing.T) {
	t.Parallel()
	for says, texts := range map[string][]string{
		"": {"0 3 * * *", "*/15 1-5 * JAN-MAR mon,thu", "CRON_TZ=Europe/Oslo 0 3,15 * * *", "0 0 29 2 *"},
		"must be a cron expression with five fields": {
			"", "0 3 * *", "0 0 3 * * *", "60 3 * * *", "@daily", "@every 1h",
			"TZ=Europe/Oslo 0 3 * * *", "CRON_TZ=Europe/Oslo", "CRON_TZ=Europe/Oslo TZ=UTC 0 3 * * *",
		},
		"must name a known time zone": { // Local is whatever the server's is
			"CRON_TZ= 0 3 * * *", "CRON_TZ=Local 0 3 * * *",
			"CRON_TZ=Europe/Atlantis 0 3 * * *", "CRON_TZ=../../etc/passwd 0 3 * * *",
		},
		"never occurs": {"0 0 31 2 *", "CRON_TZ=Europe/Oslo 0 3 30 2 *"},
	} {
		for _, text := range texts {
			_, err := parseSchedule(text)
			wantError(t, text, err, says)
		}
	}
}

func TestScheduledRotation(t *testing.T) {
	t.Parallel()
	const day, tenYears = 24 * time.Hour, maxLifetime * time.Second
	const afternoon, summer = "2026-01-05T16:00:00Z", "2026-07-05T16:00:00Z"
	for name, test := range map[string]struct {
		schedule, obtained string
		lifetime           time.Duration
		want               string // "": none
	}{
		"the latest of two":                {"0 3,15 * * *", afternoon, day, "2026-01-06T03:00:00Z"},
		"the later one is in reach":        {"0 3,12 * * *", afternoon, day, "2026-01-06T12:00:00Z"},
		"exactly at 90 % of the lifetime":  {"36 13 * * *", afternoon, day, "2026-01-06T13:36:00Z"},
		"a minute past it":                 {"37 13 * * *", afternoon, day, ""},
		"exactly 5 s away":                 {"0 16 * * *", "2026-01-05T15:59:55Z", day, afternoon},
		"4 s away":                         {"0 16 * * *", "2026-01-05T15:59:56Z", day, ""},
		"a gap at the weekend":             {"0 3,15 * * mon-fri", "2026-01-09T15:00:02Z", day, ""},
		"every minute of ten years":        {"* * * * *", afternoon, tenYears, "2035-01-03T16:00:00Z"},
		"once in ten years":                {"0 0 29 2 *", afternoon, tenYears, "2032-02-29T00:00:00Z"},
		"a lifetime of seconds":            {"* * * * *", "2026-01-05T16:00:50Z", 20 * time.Second, "2026-01-05T16:01:00Z"},
		"a lifetime below the shortest":    {"* * * * *", "2026-01-05T16:00:55Z", 5 * time.Second, ""},
		"in winter time":                   {"CRON_TZ=Europe/Oslo 0 3 * * *", afternoon, day, "2026-01-06T02:00:00Z"},
		"in summer time":                   {"CRON_TZ=Europe/Oslo 0 3 * * *", summer, day, "2026-07-06T01:00:00Z"},
		"the first of the month, far away": {"0 0 1 * *", "2026-01-05T20:00:00Z", day, ""},
	} {
		schedule, err := parseSchedule(test.schedule)
		if err != nil {
			t.Fatal(err)
		}
		obtained, err := time.Parse(time.RFC3339, test.obtained)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if at := scheduledRotation(schedule, obtained, obtained, test.lifetime); !at.IsZero() {
			got = at.UTC().Format(time.RFC3339)
		}
		if got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}

func TestScheduleGap(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Time{ // for 24 h tokens, from 2000 on
		"0 3,15 * * *":                      {},
		"*/5 * * * *":                       {},
		"0 3 * * *":                         start2000.Add(3 * time.Hour),
		"0 3,15 * * mon-fri":                start2000.Add(6*24*time.Hour + 15*time.Hour), // the first Friday
		"CRON_TZ=Europe/Oslo 30 4,16 * * *": {},
	} {
		schedule, err := parseSchedule(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := scheduleGap(schedule, start2000, 24*time.Hour); !got.Equal(want) {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// TestRotationSchedule has a schedule for three days. Tokens are replaced at the scheduled
// second, and consumers see the usual fields. A schedule whose times have passed for the
// current token replaces nothing at once, because consumers may restart at a rotation.
func TestRotationSchedule(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		time.Sleep(16 * time.Hour)
		e.configure("default", "rotation_schedule", "0 3,15 * * *")
		for _, next := range []struct{ time, reason string }{
			{"2000-01-01T18:00:00Z", "lifetime"}, // 15:00 has passed, and 03:00 is out of reach
			{"2000-01-02T15:00:00Z", "schedule"},
			{"2000-01-03T03:00:00Z", "schedule"},
			{"2000-01-03T15:00:00Z", "schedule"},
		} {
			at, _ := time.Parse(time.RFC3339, next.time)
			e.restart()
			e.want("status", "next_rotation", next.time, "next_rotation_reason", next.reason)
			time.Sleep(time.Until(at) + time.Second) // as a consumer does, ttl and a second
			e.want("token", "last_vault_rotation", next.time)
		}
		e.want("token", "rotation_period", int64(12*3600), "ttl", int64(12*3600-1), "rotation_schedule", nil)
		e.wantRequests(5)
	})
}

// TestRotationScheduleOfConfig is what a config write makes of a schedule.
func TestRotationScheduleOfConfig(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "rotation_period", "8h")
		const twice, at20, at23 = "0 3,15 * * *", "0 20 * * *", "0 23 * * *"
		both := fields{"rotation_period": 3600, "rotation_schedule": twice}
		e.wantCode(http.StatusBadRequest, "are mutually exclusive")(e.write("config", both))
		for _, test := range []struct {
			write    fields
			schedule string
			period   int64
			reason   string
			warns    string
		}{
			{fields{"rotation_schedule": twice}, twice, 0, "schedule", ""},
			{fields{"rotation_schedule": twice, "rotation_period": 0}, twice, 0, "schedule", ""}, // Terraform, again
			{fields{"rotation_period": 0}, twice, 0, "schedule", ""},
			{fields{"rotation_period": "2h"}, "", 7200, "period", ""},
			{fields{"rotation_schedule": ""}, "", 7200, "period", ""},
			{fields{"rotation_period": "23h"}, "", 82800, "lifetime", ""}, // 90 % of it are less
			{fields{"rotation_schedule": at20}, at20, 0, "schedule", "after 2000-01-01T20:00:00Z (90% of a token's lifetime)"},
			{fields{"rotation_schedule": at23}, at23, 0, "lifetime", "no scheduled time in the 21h36m0s after"},
			{fields{"rotation_schedule": "", "rotation_period": 0}, "", 0, "lifetime", ""},
		} {
			warned := ""
			if resp := e.ok(e.write("config", test.write)); resp != nil {
				warned = strings.Join(resp.Warnings, "; ")
			}
			if (warned != "") != (test.warns != "") || !strings.Contains(warned, test.warns) {
				t.Errorf("%v: warning %q, want %q", test.write, warned, test.warns)
			}
			e.want("config", "rotation_schedule", test.schedule, "rotation_period", test.period)
			e.want("status", "next_rotation_reason", test.reason)
		}
		synctest.Wait()
		e.wantRequests(1) // none of this costs a token
	})
}

// A schedule that was set by a clock ahead counts as soon as the clock is right.
func TestAScheduleSetByAClockAhead(t *testing.T) {
	t.Parallel()
	since := start2000.Add(72 * time.Hour).Unix()
	config := &configEntry{Generation: "g", RotationSchedule: "0 3,15 * * *", ScheduleSince: since}
	entry := tokenEntry{}.withToken("g", tokenAnswer{"token", "", 24 * time.Hour}, start2000, start2000)
	s := newSnapshot(config, entry, start2000.Add(time.Minute))
	if s.period != 15*time.Hour || s.periodReason != reasonSchedule {
		t.Errorf("rotated after %s by %s, want 15 h by the schedule", s.period, s.periodReason)
	}
}
