package main

import (
	"errors"
	"sort"
	"strings"
	"time"
	_ "time/tzdata" // time zones, on hosts that have none

	"github.com/robfig/cron/v3"
)

const (
	// scheduleMinDelay is how far away a scheduled time must be at least.
	scheduleMinDelay = 5 * time.Second
	// scheduleRotations is how many rotations are looked at to see whether a
	// schedule has gaps: more than a year of 24 h tokens.
	scheduleRotations = 1000
)

// # Scheduled rotation
//
// A schedule says at which times of day or week a token is to be replaced. Tokens expire
// all the same, so a schedule can only choose among the times that a token's lifetime
// allows: the latest scheduled time within 90% of it, or, if there is none, the time
// that would count without a schedule. Cron expressions are those of robfig/cron, which
// Vault's SDK uses for its own rotation_schedule. They can be read forwards only.

// parseSchedule reads a rotation_schedule: a cron expression with five fields, in
// UTC unless it begins with CRON_TZ=Area/City. The error names the rule.
func parseSchedule(text string) (*cron.SpecSchedule, error) {
	zone := time.UTC
	if named, found := strings.CutPrefix(text, "CRON_TZ="); found {
		name, rest, _ := strings.Cut(named, " ")
		location, err := time.LoadLocation(name)
		if err != nil || name == "" || name == "Local" {
			return nil, errors.New("rotation_schedule must name a known time zone, such as CRON_TZ=Europe/Oslo")
		}
		zone, text = location, rest
	}
	var schedule *cron.SpecSchedule
	if !strings.Contains(text, "=") { // the parser knows more prefixes, and panics on some
		parsed, _ := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow).Parse(text)
		schedule, _ = parsed.(*cron.SpecSchedule)
	}
	if schedule == nil {
		return nil, errors.New("rotation_schedule must be a cron expression with five fields, " +
			`such as "0 3,15 * * *" or "CRON_TZ=Europe/Oslo 0 3,15 * * *"`)
	}
	schedule.Location = zone
	if schedule.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, errors.New("rotation_schedule never occurs (for example, February 30)")
	}
	return schedule, nil
}

// scheduledRotation returns when a token with this lifetime, obtained at a time, is
// to be replaced: at the latest scheduled time that is neither too close nor past
// 90% of the lifetime. It returns zero if there is none. Times before since do not
// count: a schedule that is set must not replace a token at once.
func scheduledRotation(schedule cron.Schedule, obtained, since time.Time, lifetime time.Duration) time.Time {
	last := obtained.Add(lifetime * 9 / 10)
	if since.After(obtained) {
		obtained = since
	}
	first := obtained.Add(scheduleMinDelay)
	// A cron expression can only be read forwards. So search for the first second that no
	// scheduled time follows; the latest one is at the second before.
	seconds := sort.Search(max(int(last.Sub(first)/time.Second)+1, 0), func(i int) bool {
		next := schedule.Next(first.Add(time.Duration(i-1) * time.Second)) // at second i or later
		return next.IsZero() || next.After(last)
	})
	if seconds == 0 {
		return time.Time{}
	}
	return first.Add(time.Duration(seconds-1) * time.Second)
}

// scheduleGap returns the first scheduled time after from that is not followed by
// another within 90% of lifetime. It looks at most two years or scheduleRotations
// rotations ahead, and returns zero if it finds none.
func scheduleGap(schedule cron.Schedule, from time.Time, lifetime time.Duration) time.Time {
	t, end := schedule.Next(from), from.AddDate(2, 0, 0)
	for range scheduleRotations {
		if t.After(end) {
			break
		}
		next := scheduledRotation(schedule, t, t, lifetime)
		if next.IsZero() {
			return t
		}
		t = next
	}
	return time.Time{}
}
