package sockets

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"trunkline/internal/testbed/ports"
)

// patience is how long anything in these tests may take.
const patience = 20 * time.Second

// childSettings, when set, makes this test binary an echo of the UDP addresses in it; "exit N" in a message ends it.
const childSettings = "TRUNKLINE_TEST_ECHO"

func TestMain(m *testing.M) {
	settings, child := os.LookupEnv(childSettings)
	if !child {
		os.Exit(m.Run())
	}
	if err := echo(strings.Fields(settings)); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(99)
	}
}

// echo answers each datagram with its own process id and what it said. "release" closes the socket for good.
func echo(addresses []string) error {
	store := FromEnvironment(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	var wg sync.WaitGroup
	for _, a := range addresses {
		if code, found := strings.CutPrefix(a, "exit:"); found {
			n, _ := strconv.Atoi(code)
			os.Exit(n)
		}
		conn, err := store.ListenUDP(netip.MustParseAddrPort(a))
		if err != nil {
			return err
		}
		wg.Go(func() {
			buf := make([]byte, 100)
			for {
				n, from, err := conn.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				fmt.Fprintf(writerTo{conn, from}, "%d %s", os.Getpid(), buf[:n])
				if string(buf[:n]) == "release" {
					store.Release(conn.LocalAddr())
					_ = conn.Close()
				}
				if code, found := strings.CutPrefix(string(buf[:n]), "exit "); found {
					n, _ := strconv.Atoi(code)
					os.Exit(n)
				}
			}
		})
	}
	store.Sweep()
	store.Ready()
	wg.Wait()
	select {} // until it is killed
}

type writerTo struct {
	conn *net.UDPConn
	to   netip.AddrPort
}

func (w writerTo) Write(b []byte) (int, error) { return w.conn.WriteToUDPAddrPort(b, w.to) }

// kept is a keeper with a child that echoes.
type kept struct {
	*Keeper
	t    *testing.T
	stop context.CancelFunc
	over chan int

	mu       sync.Mutex // guards what follows
	settings string     // of the next child
	child    *exec.Cmd
}

func keepEcho(t *testing.T, settings string, pause time.Duration) *kept {
	t.Helper()
	k := &kept{t: t, settings: settings, over: make(chan int, 1)}
	var err error
	if k.Keeper, err = NewKeeper(k.command, slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
		t.Fatal(err)
	}
	k.Pause = pause
	ctx, stop := context.WithCancel(context.Background())
	k.stop = stop
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		code, err := k.Run(ctx)
		if err != nil {
			t.Error(err)
		}
		k.over <- code
	}()
	t.Cleanup(func() { stop(); <-ended })
	return k
}

func (k *kept) command() *exec.Cmd {
	k.mu.Lock()
	defer k.mu.Unlock()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childSettings+"="+k.settings)
	cmd.Stderr = os.Stderr
	k.child = cmd
	return cmd
}

func (k *kept) await(what string, holds func() bool) {
	k.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			k.t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// up waits until the child answers, and has said that it is ready: one that ends before that is not started again.
func (k *kept) up(phone net.Conn) {
	k.t.Helper()
	k.await("the child", func() bool {
		k.Keeper.mu.Lock()
		ready := k.ready
		k.Keeper.mu.Unlock()
		return ready && ask(k.t, phone, "hello") != 0
	})
}

// dial is a socket that hears when nobody is bound at the address.
func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ask sends a word and returns which process has answered; 0 = nobody has.
func ask(t *testing.T, conn net.Conn, word string) int { return askFor(t, conn, word, time.Second) }

func askFor(t *testing.T, conn net.Conn, word string, patience time.Duration) int {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(word)); err != nil {
		return 0 // what was sent before was refused
	}
	for {
		buf := make([]byte, 100)
		n, err := conn.Read(buf)
		if err != nil {
			return 0
		}
		if pid, said, _ := strings.Cut(string(buf[:n]), " "); said == word { // else it is late
			number, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatalf("answer %q", buf[:n])
			}
			return number
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	free, err := ports.Free(1)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("127.0.0.1:", free[0])
}

func TestWhatComesWhileNoProcessRunsIsReadByTheNext(t *testing.T) {
	address := freeAddress(t)
	k := keepEcho(t, address, 300*time.Millisecond)
	phone := dial(t, address)
	k.up(phone)
	first := askFor(t, phone, "hello", patience)
	if n := k.Held(); n != 1 {
		t.Errorf("%d sockets are held, want 1", n)
	}
	for i := range 2 { // the second child has inherited what it leaves
		k.mu.Lock()
		child := k.child
		k.mu.Unlock()
		k.Signal(syscall.SIGKILL)
		k.await("the child to be dead", func() bool { return child.Process.Signal(syscall.Signal(0)) != nil })
		second := askFor(t, phone, fmt.Sprint("meanwhile ", i), patience)
		if second == 0 || second == first {
			t.Fatalf("what was sent while no process ran was answered by %d; the one before is %d", second, first)
		}
		if n := k.Held(); n != 1 {
			t.Errorf("%d sockets are held, want 1", n)
		}
		first = second
	}
}

func TestRestartOnRequestKeepsTheSockets(t *testing.T) {
	address := freeAddress(t)
	k := keepEcho(t, address, 50*time.Millisecond)
	phone := dial(t, address)
	k.up(phone)
	first := askFor(t, phone, "hello", patience)
	k.Restart()
	k.await("another child", func() bool { pid := ask(t, phone, "hello"); return pid != 0 && pid != first })
}

func TestReleasedSocketIsKeptNoMore(t *testing.T) {
	addresses := []string{freeAddress(t), freeAddress(t)}
	k := keepEcho(t, strings.Join(addresses, " "), 50*time.Millisecond)
	phone := dial(t, addresses[0])
	k.up(phone)
	if askFor(t, phone, "release", patience) == 0 {
		t.Fatal("nobody answers")
	}
	k.await("one socket to be left", func() bool { return k.Held() == 1 })
	k.await("nobody to be there", func() bool { return ask(t, phone, "hello") == 0 })
}

// The configuration changed: what the new one does not name is closed, also where it is in the way of what it names.
func TestSocketsOfAnotherConfigurationAreClosed(t *testing.T) {
	stays, goes, moves := freeAddress(t), freeAddress(t), freeAddress(t)
	k := keepEcho(t, strings.Join([]string{stays, goes, moves}, " "), 50*time.Millisecond)
	phone := dial(t, stays)
	k.up(phone)
	_, port, _ := net.SplitHostPort(moves)
	k.mu.Lock()
	k.settings = stays + " 0.0.0.0:" + port
	k.mu.Unlock()
	first := askFor(t, phone, "hello", patience)
	k.Restart()
	k.await("the next child", func() bool { pid := ask(t, phone, "hello"); return pid != 0 && pid != first })
	moved := dial(t, moves)
	k.await("the address that is new", func() bool { pid := ask(t, moved, "hello"); return pid != 0 && pid != first })
	k.await("the others to be held no more", func() bool { return k.Held() == 2 })
	if ask(t, dial(t, goes), "hello") != 0 {
		t.Errorf("%s is still bound", goes)
	}
}

func TestKeeperEndsWithItsProgram(t *testing.T) {
	t.Run("which cannot start", func(t *testing.T) {
		k := keepEcho(t, "exit:2", 50*time.Millisecond)
		if code := <-k.over; code != 2 {
			t.Errorf("Run = %d, want 2: a wrong configuration does not mend itself", code)
		}
	})
	t.Run("which has done its work", func(t *testing.T) {
		address := freeAddress(t)
		k := keepEcho(t, address, 50*time.Millisecond)
		phone := dial(t, address)
		k.up(phone)
		ask(t, phone, "exit 0")
		if code := <-k.over; code != 0 {
			t.Errorf("Run = %d, want 0", code)
		}
	})
	t.Run("which is asked to", func(t *testing.T) {
		address := freeAddress(t)
		k := keepEcho(t, address, 50*time.Millisecond)
		phone := dial(t, address)
		k.up(phone)
		k.stop()
		if code := <-k.over; code != 128+int(syscall.SIGTERM) {
			t.Errorf("Run = %d, want the signal's code", code)
		}
	})
}

// Anybody may send to the keeper's socket; only its child is believed.
func TestKeeperBelievesItsChildOnly(t *testing.T) {
	address := freeAddress(t)
	k := keepEcho(t, address, 50*time.Millisecond)
	phone := dial(t, address)
	k.up(phone)
	stranger := exec.Command(os.Args[0])
	stranger.Env = append(os.Environ(), childSettings+"="+freeAddress(t), "NOTIFY_SOCKET="+k.conn.LocalAddr().String())
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Wait() }()
	defer func() { _ = stranger.Process.Kill() }()
	other := dial(t, strings.TrimPrefix(stranger.Env[len(stranger.Env)-2], childSettings+"="))
	k.await("the stranger", func() bool { return ask(t, other, "hello") != 0 })
	if err := k.catchUp(); err != nil {
		t.Fatal(err)
	}
	if n := k.Held(); n != 1 {
		t.Errorf("%d sockets are held, want the child's alone", n)
	}
}

func TestNilStoreKeepsNothing(t *testing.T) {
	var s *Store
	conn, err := s.ListenUDP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	s.Release(conn.LocalAddr())
	s.Sweep()
	s.Ready()
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.ListenTCP(netip.MustParseAddrPort("192.0.2.1:1")); err == nil {
		t.Error("a foreign address was bound")
	}
}
