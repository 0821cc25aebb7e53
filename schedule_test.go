package main

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestParseSchedule(t *testing.T) {
	t.Parallel()
	for says, texts := range map[string][]string{
		"": {"0 3 * * *", "*/15 1-5 * JAN-MAR mon,thu", "CRON_TZ=Europe/Oslo 0 3,15 * * *", "CRON_TZ=UTC 0 3 * * *", "0 0 29 2 *"},
		"must be a cron expression with five fields": {
			"", "0 3 * *", "0 0 3 * * *", "60 3 * * *", "@daily", "@every 1h", "TZ=Europe/Oslo 0 3 * * *", "CRON_TZ=Europe/Oslo",
			"CRON_TZ=Europe/Oslo TZ=UTC 0 3 * * *",
		},
		"must name a known time zone": { // Local is whatever the server's is
			"CRON_TZ= 0 3 * * *", "CRON_TZ=Local 0 3 * * *", "CRON_TZ=Europe/Atlantis 0 3 * * *", "CRON_TZ=../../etc/passwd 0 3 * * *",
		},
		"never occurs": {"0 0 31 2 *", "CRON_TZ=Europe/Oslo 0 3 30 2 *"},
	} {
		for _, text := range texts {
			if _, err := parseSchedule(text); (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
				t.Errorf("%q: got %v, want %q", text, err, says)
			}
		}
	}
}

func TestScheduledRotation(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for name, test := range map[string]struct {
		schedule, obtained string
		lifetime           time.Duration
		want               string // "": none
	}{
		"the latest of two":                {"0 3,15 * * *", "2026-01-05T16:00:00Z", day, "2026-01-06T03:00:00Z"},
		"the later one is in reach":        {"0 3,12 * * *", "2026-01-05T16:00:00Z", day, "2026-01-06T12:00:00Z"},
		"exactly at 90 % of the lifetime":  {"36 13 * * *", "2026-01-05T16:00:00Z", day, "2026-01-06T13:36:00Z"},
		"a minute past it":                 {"37 13 * * *", "2026-01-05T16:00:00Z", day, ""},
		"exactly 5 s away":                 {"0 16 * * *", "2026-01-05T15:59:55Z", day, "2026-01-05T16:00:00Z"},
		"4 s away":                         {"0 16 * * *", "2026-01-05T15:59:56Z", day, ""},
		"a gap at the weekend":             {"0 3,15 * * mon-fri", "2026-01-09T15:00:02Z", day, ""},
		"every minute of ten years":        {"* * * * *", "2026-01-05T16:00:00Z", maxLifetime * time.Second, "2035-01-03T16:00:00Z"},
		"once in ten years":                {"0 0 29 2 *", "2026-01-05T16:00:00Z", maxLifetime * time.Second, "2032-02-29T00:00:00Z"},
		"a lifetime of seconds":            {"* * * * *", "2026-01-05T16:00:50Z", 20 * time.Second, "2026-01-05T16:01:00Z"},
		"a lifetime below the shortest":    {"* * * * *", "2026-01-05T16:00:55Z", 5 * time.Second, ""},
		"in winter time":                   {"CRON_TZ=Europe/Oslo 0 3 * * *", "2026-01-05T16:00:00Z", day, "2026-01-06T02:00:00Z"},
		"in summer time":                   {"CRON_TZ=Europe/Oslo 0 3 * * *", "2026-07-05T16:00:00Z", day, "2026-07-06T01:00:00Z"},
		"the first of the month, far away": {"0 0 1 * *", "2026-01-05T20:00:00Z", day, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
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
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
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

// TestRotationSchedule lives three days with a schedule: tokens are replaced at
// the scheduled second, consumers see the usual fields, and the schedule survives
// a restart.
func TestRotationSchedule(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "rotation_schedule", "0 3,15 * * *")
		got := e.token("token")
		if got["rotation_period"] != int64(15*3600) || got["ttl"] != int64(15*3600) || got["rotation_schedule"] != nil {
			t.Errorf("%v, want the time until 15:00 as rotation_period and ttl, and no rotation_schedule", got)
		}
		for _, rotated := range []string{"2000-01-01T15:00:00Z", "2000-01-02T03:00:00Z", "2000-01-02T15:00:00Z"} {
			at, _ := time.Parse(time.RFC3339, rotated)
			e.restart()
			if next := e.status("status"); next["next_rotation"] != rotated || next["next_rotation_reason"] != "schedule" {
				t.Errorf("%v, want %s by the schedule", next, rotated)
			}
			time.Sleep(time.Until(at) + time.Second) // as a consumer does, ttl and a second
			e.want("token", "last_vault_rotation", rotated)
		}
		e.wantRequests(4)
	})
}

// TestAScheduleReplacesNothingAtOnce sets a schedule whose only time has passed
// for the token in hand. Consumers may restart at a rotation, so it waits.
func TestAScheduleReplacesNothingAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		time.Sleep(10 * time.Hour)
		e.configure("default", "rotation_schedule", "0 3 * * *")
		for _, want := range []struct{ next, reason string }{
			{"2000-01-01T18:00:00Z", "lifetime"}, // 03:00 has passed, and tomorrow's is out of reach
			{"2000-01-02T03:00:00Z", "schedule"},
		} {
			e.restart()
			if got := e.status("status"); got["next_rotation"] != want.next || got["next_rotation_reason"] != want.reason {
				t.Errorf("next rotation %v by %v, want %s by %s", got["next_rotation"], got["next_rotation_reason"], want.next, want.reason)
			}
			at, _ := time.Parse(time.RFC3339, want.next)
			time.Sleep(time.Until(at) + time.Second)
		}
		e.wantRequests(3)
	})
}

// TestRotationScheduleOfConfig is what a config write makes of a schedule.
func TestRotationScheduleOfConfig(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "rotation_period", "8h")
		both := fields{"rotation_period": 3600, "rotation_schedule": "0 3,15 * * *"}
		if resp, err := e.write("config", both); code(resp, err) != http.StatusBadRequest || !strings.Contains(say(resp, err), "are mutually exclusive") {
			t.Errorf("both: %v %v, want a 400", resp, err)
		}
		for _, test := range []struct {
			data     map[string]any
			schedule string
			period   int64
			warns    string
			reason   string
		}{
			{fields{"rotation_schedule": "0 3,15 * * *"}, "0 3,15 * * *", 0, "", "schedule"},
			{fields{"rotation_schedule": "0 3,15 * * *", "rotation_period": 0}, "0 3,15 * * *", 0, "", "schedule"}, // Terraform, again
			{fields{"rotation_period": 0}, "0 3,15 * * *", 0, "", "schedule"},
			{fields{"rotation_period": "2h"}, "", 7200, "", "period"},
			{fields{"rotation_schedule": ""}, "", 7200, "", "period"},
			{fields{"rotation_period": "23h"}, "", 82800, "", "lifetime"}, // 90 % of it are less
			{fields{"rotation_schedule": "0 20 * * *"}, "0 20 * * *", 0, "after 2000-01-01T20:00:00Z (90% of a token's lifetime)", "schedule"},
			{fields{"rotation_schedule": "0 23 * * *"}, "0 23 * * *", 0, "no scheduled time in the 21h36m0s after", "lifetime"},
			{fields{"rotation_schedule": "", "rotation_period": 0}, "", 0, "", "lifetime"},
		} {
			resp, err := e.write("config", test.data)
			if err != nil || resp.IsError() {
				t.Fatal(test.data, resp, err)
			}
			warned := ""
			if resp != nil {
				warned = strings.Join(resp.Warnings, "; ")
			}
			if (warned != "") != (test.warns != "") || !strings.Contains(warned, test.warns) {
				t.Errorf("%v: warning %q, want %q", test.data, warned, test.warns)
			}
			config, reason := e.status("config"), e.status("status")["next_rotation_reason"]
			if config["rotation_schedule"] != test.schedule || config["rotation_period"] != test.period || reason != test.reason {
				t.Errorf("%v: schedule %q, period %v, reason %v", test.data, config["rotation_schedule"], config["rotation_period"], reason)
			}
		}
		synctest.Wait()
		e.wantRequests(1) // none of this costs a token
	})
}
