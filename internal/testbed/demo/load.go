package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// settle is how long the bridge's memory and processor use are watched with all phones up.
const settle = 10 * time.Second

// crowd lets more phones into the call, and says what each costs the bridge.
func (w *world) crowd(ctx context.Context, phones int) error {
	if phones <= 0 || w.bridge == nil {
		return nil
	}
	before, err := w.usage()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	failed := make(chan error, phones) // one place for each
	for i := range phones {
		p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), User: strconv.Itoa(1000 + i)})
		if err != nil {
			return err
		}
		defer p.Close()
		wg.Go(func() {
			if _, err := p.Dial(ctx, w.sip, w.opts.number); err != nil {
				failed <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("one of %d more phones: %w", phones, err)
	default:
	}
	err = w.alice.Await(ctx, "all phones to connect", func(v member.View) bool {
		up := 0
		for _, p := range v.Peers {
			if p.State == "connected" {
				up++
			}
		}
		return up == phones+1
	})
	if err != nil {
		return err
	}
	start, err := w.usage()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(settle):
	}
	end, err := w.usage()
	if err != nil {
		return err
	}
	w.show.say("%d more phones: bridge %d -> %d MiB, %d KiB a call; %.1f %% of a core in all", phones, before.memory>>20, end.memory>>20,
		(end.memory-before.memory)>>10/phones, 100*(end.cpu-start.cpu).Seconds()/settle.Seconds())
	return nil
}

// usage is what a process has used.
type usage struct {
	memory int // bytes resident
	cpu    time.Duration
}

// usage reads the bridge's from /proc.
func (w *world) usage() (usage, error) {
	pid := w.bridge.Process.Pid
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return usage{}, err
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	if err != nil {
		return usage{}, err
	}
	// proc(5): utime and stime are fields 14 and 15, in 1/100 s; the program's name, field 2, ends with ")".
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		return usage{}, fmt.Errorf("read /proc/%d/stat: %q", pid, stat)
	}
	return usage{memory: pages * os.Getpagesize(), cpu: time.Duration(user+system) * 10 * time.Millisecond}, nil
}
