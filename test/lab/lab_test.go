//go:build e2e

package lab_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"trunkline/test/lab"
)

// The lab proves itself without the bridge: when these fail, nothing else need be looked at.

var bed *lab.Lab

func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if bed, err = lab.Start(ctx, lab.Options{Homeserver: true, Browser: true, Progress: os.Stdout}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() { // Ctrl-C in mid-test
		<-ctx.Done()
		bed.Close()
		os.Exit(130)
	}()
	code := m.Run()
	if err := bed.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func TestHydrogenHearsHydrogen(t *testing.T) { pagesHearEachOther(t, lab.Hydrogen, lab.Hydrogen) }
func TestJSSDKHearsJSSDK(t *testing.T)       { pagesHearEachOther(t, lab.JSSDK, lab.JSSDK) }
func TestHydrogenHearsJSSDK36(t *testing.T)  { pagesHearEachOther(t, lab.Hydrogen, lab.JSSDK36) }

func pagesHearEachOther(t *testing.T, first, second lab.Kind) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	alice, bob := must(t)(bed.NewUser(ctx, "alice")), must(t)(bed.NewUser(ctx, "bob"))
	room, err := bed.NewRoom(ctx, lab.RoomOptions{Owner: alice, Members: []*lab.User{bob}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := bed.OpenClient(ctx, first, alice, bed.Voice(0))
	if err != nil {
		t.Fatal(err)
	}
	b, err := bed.OpenClient(ctx, second, bob, bed.Voice(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	t.Cleanup(func() { b.Close() })
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s\nSynapse:\n%s", a.State(context.Background()), b.State(context.Background()), bed.Synapse.LogTail(8000))
		}
	})
	call, err := a.CreateCall(ctx, room.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Join(ctx, room.ID, call); err != nil {
		t.Fatal(err)
	}
	if _, err := b.AwaitCall(ctx, room.ID); err != nil {
		t.Fatal(err)
	}
	joined := time.Now()
	if err := b.Join(ctx, room.ID, call); err != nil {
		t.Fatal(err)
	}
	time.Sleep(11 * time.Second)
	hearsOther(t, ctx, a, b, joined)
	hearsOther(t, ctx, b, a, joined)
	if err := b.Leave(ctx); err != nil {
		t.Error(err)
	}
	if err := a.Leave(ctx); err != nil {
		t.Error(err)
	}
}

// hearsOther checks that the listener has heard the speaker, and not itself.
func hearsOther(t *testing.T, ctx context.Context, listener, speaker *lab.Client, since time.Time) {
	t.Helper()
	tracks, err := listener.Heard(ctx, since)
	if err != nil {
		t.Fatal(err)
	}
	said, err := speaker.Saying(ctx)
	if err != nil {
		t.Fatal(err)
	}
	own, err := listener.Saying(ctx)
	if err != nil {
		t.Fatal(err)
	}
	heard := lab.Mix(tracks...)
	first, ok := heard.FirstSound()
	if !ok {
		t.Fatalf("%s hears nothing from %s in %d tracks", listener.User.Name, speaker.User.Name, len(tracks))
	}
	piece := heard.Cut(first.Add(time.Second), 8*time.Second)
	right, wrong := piece.Match(said), piece.Match(own)
	t.Logf("%s (%s) hears %s after %d ms; own voice %.2f", listener.User.Name, listener.Kind, right,
		first.Sub(since).Milliseconds(), wrong.Correlation)
	if right.Correlation < 0.85 {
		t.Errorf("%s hears %s with correlation %.2f, want at least 0.85", listener.User.Name, speaker.User.Name, right.Correlation)
	}
	if wrong.Correlation > 0.3 {
		t.Errorf("%s hears itself with correlation %.2f, want at most 0.3", listener.User.Name, wrong.Correlation)
	}
	if right.Delay < 0 || right.Delay > 500*time.Millisecond {
		t.Errorf("%s hears %s after %s, want within half a second", listener.User.Name, speaker.User.Name, right.Delay)
	}
}

func TestPhoneHearsPhone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	a, err := bed.NewPhone(ctx, "desk", bed.Voice(2), lab.PhoneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := bed.NewPhone(ctx, "hall", bed.Voice(3), lab.PhoneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	t.Cleanup(func() { b.Close() })
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s", a.State(), b.State())
		}
	})
	began := time.Now()
	if err := a.Dial(ctx, b.Address()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*lab.Phone{a, b} {
		if _, err := p.Await(ctx, lab.CallEstablished, began); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.SendDigit(ctx, '5'); err != nil {
		t.Error(err)
	}
	if ev, err := b.Await(ctx, lab.CallDigit, began); err != nil || ev.Param != "5" {
		t.Errorf("digit %q, %v; want 5", ev.Param, err)
	}
	time.Sleep(8 * time.Second)
	for _, pair := range [][2]*lab.Phone{{a, b}, {b, a}} {
		heard, err := pair[0].Heard()
		if err != nil {
			t.Fatal(err)
		}
		piece := heard.Cut(heard.Start.Add(time.Second), 6*time.Second)
		right, wrong := piece.Match(pair[1].Saying()), piece.Match(pair[0].Saying())
		t.Logf("%s hears %s; own voice %.2f", pair[0].Name, right, wrong.Correlation)
		if right.Correlation < 0.95 || wrong.Correlation > 0.3 {
			t.Errorf("%s: right voice %.2f, own voice %.2f; want at least 0.95 and at most 0.3", pair[0].Name,
				right.Correlation, wrong.Correlation)
		}
	}
	if err := a.Hangup(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Await(ctx, lab.CallClosed, began); err != nil {
		t.Error(err)
	}
}

func must(t *testing.T) func(*lab.User, error) *lab.User {
	return func(u *lab.User, err error) *lab.User {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
}
