package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func TestNetstrings(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"5:hello,", "hello"},
		{"0:,", ""},
		{"5:hel", "!"},
		{"x:hello,", "!"},
		{"-1:,", "!"},
		{"99999999:x,", "!"},
		{"", "!"},
	} {
		got, err := readNetstring(bufio.NewReader(strings.NewReader(c.in)))
		if err != nil {
			got = []byte("!")
		}
		if string(got) != c.want {
			t.Errorf("readNetstring(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestControlTellsResponsesFromEvents(t *testing.T) {
	ours, theirs := net.Pipe()
	events := make(chan PhoneEvent, 1)
	c := &baresipControl{
		conn: ours, events: func(ev PhoneEvent) { events <- ev }, done: make(chan struct{}), waiting: map[string]chan controlMessage{},
	}
	go c.read()
	defer c.close()
	go func() { // a baresip that reports an event before it refuses
		r := bufio.NewReader(theirs)
		for range 2 {
			if _, err := readNetstring(r); err != nil {
				return
			}
			event := `{"event":true,"type":"CALL_CLOSED","param":"busy"}`
			fmt.Fprintf(theirs, "%d:%s,", len(event), event)
			refusal := `{"response":true,"ok":false,"data":"no such command","token":"1"}`
			fmt.Fprintf(theirs, "%d:%s,", len(refusal), refusal)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := c.command(ctx, "nonsense", ""); err == nil || !strings.Contains(err.Error(), "no such command") {
		t.Errorf("command: %v, want a refusal that names the reason", err)
	}
	if ev := <-events; ev.Type != CallClosed || ev.Param != "busy" {
		t.Errorf("event %+v, want CALL_CLOSED busy", ev)
	}
}

func TestResidentBytes(t *testing.T) {
	got, err := residentBytes("Name:\tbridge\nVmRSS:\t   32768 kB\nThreads:\t9\n")
	if err != nil || got != 32<<20 {
		t.Errorf("residentBytes = %d, %v; want 32 MiB", got, err)
	}
	if _, err := residentBytes("Name:\tbridge\n"); err == nil {
		t.Error("residentBytes found memory where there is none")
	}
}
