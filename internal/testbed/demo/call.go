package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/internal/testbed/speech"
)

const (
	memberRate = 48000
	talkTime   = 8 * time.Second
	patience   = 20 * time.Second
)

// talk is what was said and heard.
type talk struct {
	phoneSaid, phoneHeard   []int16 // 8 kHz
	memberSaid, memberHeard []int16 // 48 kHz
	// Where the phone's recording begins, against the first sample said by the other side: what Compare's delay must be corrected by.
	phoneLead  time.Duration
	complaints []string
}

// call is the main job: the member is in the room's call, the phone dials in, both talk, the phone hangs up.
func (w *world) call(ctx context.Context) (*talk, error) {
	if _, err := w.alice.CreateCall(ctx, w.room); err != nil {
		return nil, fmt.Errorf("create call: %w", err)
	}
	if err := w.alice.JoinCall(ctx, w.room); err != nil {
		return nil, fmt.Errorf("join call: %w", err)
	}
	w.show.say("alice is in the room's call; a phone dials %s at %s", w.opts.number, w.sip)

	w.show.mark("phone: INVITE")
	dialCtx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("nobody answered the phone"))
	defer cancel()
	ghost := make(chan id.UserID, 1)
	failed := make(chan error, 1)
	go func() {
		err := w.alice.Await(dialCtx, "a ghost to connect", func(v member.View) bool {
			for _, p := range v.Peers {
				if p.State == "connected" {
					ghost <- p.User
					return true
				}
			}
			return false
		})
		if err != nil {
			failed <- err
		}
	}()
	call, err := w.phone.DialWith(dialCtx, w.sip, phone.Invite{Number: w.opts.number})
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	answered := w.show.mark("phone: answered")
	var who id.UserID
	select {
	case who = <-ghost:
	case err := <-failed:
		return nil, fmt.Errorf("%w\nalice sees %+v", err, w.alice.View())
	}
	w.show.mark("room: ghost connected to alice")
	t, err := w.converseWell(ctx, call, who, answered)
	if err != nil {
		return nil, err
	}
	if err := w.crowd(ctx, w.opts.phones); err != nil {
		return nil, err
	}
	if err := call.Hangup(ctx); err != nil {
		return nil, fmt.Errorf("hang up: %w", err)
	}
	w.show.mark("phone: hung up")
	if err := w.alice.AwaitGone(ctx, who); err != nil {
		return nil, err
	}
	w.show.mark("room: ghost has left the call")
	t.complaints = w.alice.Complaints()
	return t, nil
}

// attempts is how often both talk: sound made in real time on a machine without time to spare says little of the bridge.
const attempts = 3

// converseWell lets them talk again if they did not hear each other well.
func (w *world) converseWell(ctx context.Context, call *phone.Call, ghost id.UserID, answered time.Time) (*talk, error) {
	for attempt := 1; ; attempt++ {
		t, err := w.converse(ctx, call, ghost, answered)
		if err != nil || attempt == attempts {
			return t, err
		}
		bad := t.sounds(io.Discard)
		if bad == nil {
			return t, nil
		}
		w.show.say("not heard well (%v); the machine's load is %s, so they talk once more", bad, load())
	}
}

// load is the number of processes that wanted a core, on average over the last minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}

// converse lets both talk at once and records both.
func (w *world) converse(ctx context.Context, call *phone.Call, ghost id.UserID, answered time.Time) (*talk, error) {
	t := &talk{phoneSaid: speech.Bob.PCM(phone.Rate, talkTime), memberSaid: speech.Alice.PCM(memberRate, talkTime)}
	w.show.say("both talk for %v", talkTime)
	w.alice.Forget()
	began := time.Now()
	call.Play(t.phoneSaid)
	w.alice.SaysOnce(t.memberSaid)
	before := len(call.Heard())
	w.firstSound(ctx, began, "phone: hears alice", func() []int16 { return from(call.Heard(), before) }, phone.Rate)
	w.firstSound(ctx, began, "alice: hears the phone", func() []int16 { return w.alice.Heard(ghost).PCM }, memberRate)
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(time.Until(began.Add(talkTime + 500*time.Millisecond))):
	}
	t.phoneHeard, t.memberHeard = from(call.Heard(), before), w.alice.Heard(ghost).PCM
	t.phoneLead = began.Sub(answered) - time.Duration(before)*time.Second/phone.Rate
	return t, nil
}

// firstSound waits for the first audible sample of a recording.
func (w *world) firstSound(ctx context.Context, began time.Time, what string, heard func() []int16, rate int) {
	err := await(ctx, 3*time.Second, what, func() bool {
		_, ok := listen.Onset(heard(), rate, audible)
		return ok
	})
	if err != nil {
		w.show.say("not in time: %s", what)
		return
	}
	w.show.mark(what)
}

const audible = 200 // peak of 32767

func from(pcm []int16, at int) []int16 { return pcm[min(at, len(pcm)):] }

// Thresholds: on an idle machine speech comes through with 0.9 and more, on a very busy one with less, for jitter buffers
// stretch it; unrelated voices stay below the second.
const (
	likeness   = 0.70
	difference = 0.25
	maxDelay   = 400 * time.Millisecond
	maxGain    = 3.0 // dB either way
)

// judge prints what was heard, writes the recordings, and returns an error unless both heard the other and not themselves.
func (t *talk) judge(dir string, show *progress) error {
	show.timeline()
	fmt.Fprintln(show.out, "\nWhat was heard:")
	errs := []error{
		t.sounds(show.out),
		save(filepath.Join(dir, "demo-phone-heard.wav"), phone.Rate, t.phoneHeard),
		save(filepath.Join(dir, "demo-room-heard.wav"), memberRate, t.memberHeard),
	}
	if len(t.complaints) > 0 {
		errs = append(errs, fmt.Errorf("alice's client complains about the bridge: %q", t.complaints))
	}
	fmt.Fprintln(show.out, "\nThe recordings: demo-phone-heard.wav, demo-room-heard.wav")
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Fprintf(show.out, "Both heard the other. (The whole run took %.1f s.)\n", time.Since(show.began).Seconds())
	return nil
}

// sounds judges both recordings and writes a line for each.
func (t *talk) sounds(out io.Writer) error {
	return errors.Join(
		side(out, "phone heard alice", t.phoneHeard, listen.Resample(t.memberSaid, memberRate, phone.Rate), t.phoneSaid, phone.Rate, t.phoneLead),
		side(out, "alice heard the phone", t.memberHeard, listen.Resample(t.phoneSaid, phone.Rate, memberRate), t.memberSaid, memberRate, 0),
	)
}

func side(out io.Writer, what string, heard, other, own []int16, rate int, lead time.Duration) error {
	m := listen.Compare(heard, other, rate)
	self := listen.Compare(heard, own, rate)
	m.Delay -= lead
	fmt.Fprintf(out, "  %-22s correlation %.3f (with its own voice %.3f), delay %d ms, level %+.1f dB\n",
		what+":", m.Correlation, self.Correlation, m.Delay.Milliseconds(), m.Gain)
	switch {
	case m.Correlation < likeness:
		return fmt.Errorf("%s: correlation %.3f is below %.2f", what, m.Correlation, likeness)
	case self.Correlation > difference:
		return fmt.Errorf("%s, and itself: correlation %.3f is above %.2f", what, self.Correlation, difference)
	case m.Delay < 0 || m.Delay > maxDelay:
		return fmt.Errorf("%s after %v, at most %v is right", what, m.Delay, maxDelay)
	case m.Gain < -maxGain || m.Gain > maxGain:
		return fmt.Errorf("%s at %+.1f dB, at most ±%.0f dB is right", what, m.Gain, maxGain)
	}
	return nil
}

func save(path string, rate int, pcm []int16) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(listen.WriteWAV(f, listen.Sound{Rate: rate, PCM: pcm}), f.Close())
}
