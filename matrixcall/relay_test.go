package matrixcall

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/pion/transport/v4"
)

// stalledRelay accepts connections and reads nothing.
func stalledRelay(t *testing.T) *net.TCPAddr {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	}()
	return l.Addr().(*net.TCPAddr)
}

func relayConnTo(t *testing.T, to *net.TCPAddr) transport.TCPConn {
	t.Helper()
	network, err := newRelayNet(nil, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := network.DialTCP("tcp4", nil, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A worker mixes for many rooms: a relay of one peer that stops reading must not stop it.
func TestStalledRelayHoldsUpNobody(t *testing.T) {
	conn := relayConnTo(t, stalledRelay(t))
	begun, written := time.Now(), 0
	var err error
	for err == nil && written < 256<<20 {
		at := time.Now()
		var n int
		n, err = conn.Write(make([]byte, 1200))
		written += n
		if took := time.Since(at); took > 5*time.Second { // 40 ms, on a machine that has nothing else to do
			t.Fatalf("one packet took %v", took)
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the last of %d bytes, after %v: %v; want a deadline that is over", written, time.Since(begun), err)
	}
	at := time.Now()
	if _, err := conn.Write(make([]byte, 1200)); !errors.Is(err, net.ErrClosed) || time.Since(at) > 5*time.Second {
		t.Errorf("the packet after that = %v after %v, want ErrClosed at once", err, time.Since(at))
	}
}

func TestRelayThatReadsGetsEverything(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn := relayConnTo(t, l.Addr().(*net.TCPAddr))
	relay, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	want := []byte("a frame of sound")
	for range 100 {
		time.Sleep(time.Millisecond)
		if _, err := conn.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(relay, got); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the relay read %q, %v", got, err)
		}
	}
	time.Sleep(2 * relayStall) // silence is no stall
	if _, err := conn.Write(want); err != nil {
		t.Errorf("after a pause: %v", err)
	}
}

// heldUp has no processor for a while each time it is about to write, and then writes late.
type heldUp struct {
	transport.TCPConn
	late bool
}

func (h *heldUp) SetWriteDeadline(t time.Time) error {
	if h.late = !h.late; h.late {
		t = time.Unix(1, 0)
	}
	return h.TCPConn.SetWriteDeadline(t)
}

func TestBusyMachineKeepsItsRelay(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn := relayConnTo(t, l.Addr().(*net.TCPAddr)).(*relayConn)
	conn.TCPConn = &heldUp{TCPConn: conn.TCPConn}
	relay, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	want := []byte("a frame of sound")
	if n, err := conn.Write(want); n != len(want) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(relay, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the relay read %q, %v", got, err)
	}
}

func TestNoteOfAPeerIsTamed(t *testing.T) {
	for text, want := range map[string]string{
		"candidate 192.168.1.17:4711 of 2001:db8::1:2\r\nlevel=ERROR": "candidate …:4711 of …  level=ERROR",
		"call +493012345678":                   "call +…678",
		string(bytes.Repeat([]byte("x"), 300)): string(bytes.Repeat([]byte("x"), 200)) + "…",
		"apply answer: no audio section":       "apply answer: no audio section",
	} {
		if got := tame(text); got != want {
			t.Errorf("tame(%q) = %q, want %q", text, got, want)
		}
	}
}
