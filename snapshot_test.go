package main

import (
	"testing"
	"time"
)

func TestTheSameTokenWithNewLife(t *testing.T) {
	t.Parallel()
	answer := tokenAnswer{accessToken: "t", lifetime: time.Hour}
	now := start2000
	entry := tokenEntry{}.withToken("g", answer, now, now)
	now = now.Add(10 * time.Hour)
	s := newSnapshot(&configEntry{Generation: "g"}, entry.withToken("g", answer, now, now), now)
	if want := now.Add(30 * time.Minute); !s.live(now) || !s.dueAt().Equal(want) {
		t.Errorf("live %v, due at %s, want %s", s.live(now), s.dueAt(), want)
	}
}
