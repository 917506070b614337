package db

import (
	"testing"
	"time"
)

func TestASettingIsWhatWasStoredLast(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, ctx := open(t, address), t.Context()
		for _, want := range []string{"", "off, it's late", "off", "", ""} {
			if err := s.PutSetting(ctx, "switch", want, morning); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Setting(ctx, "switch"); got != want || err != nil {
				t.Errorf("Setting = %q, %v, want %q", got, err, want)
			}
			if got, err := s.Setting(ctx, "another"); got != "" || err != nil {
				t.Errorf("Setting of what was never stored = %q, %v", got, err)
			}
		}
	})
}

func TestASettingThatWasSetEarlierReplacesNone(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, ctx := open(t, address), t.Context()
		for _, later := range []string{"off", ""} {
			must(t, s.PutSetting(ctx, "switch "+later, later, morning))
			must(t, s.PutSetting(ctx, "switch "+later, "of before", morning.Add(-time.Second)))
			if got, err := s.Setting(ctx, "switch "+later); got != later || err != nil {
				t.Errorf("Setting = %q, %v, want %q, which was set last", got, err, later)
			}
			must(t, s.SetNow(ctx, "switch "+later, "of now", morning.Add(-time.Hour))) // by a clock that was put right
			must(t, s.PutSetting(ctx, "switch "+later, "of before", morning))
			if got, err := s.Setting(ctx, "switch "+later); got != "of now" || err != nil {
				t.Errorf("Setting = %q, %v, want what is set now", got, err)
			}
		}
	})
}
