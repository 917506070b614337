package sockets

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
	steadyAfter  = time.Minute // a program that ran so long begins with the first pause again
	readPause    = 100 * time.Millisecond
	stopPatience = 28 * time.Second // a program that was asked to end and does not
)

// Keeper runs a program, keeps its sockets, and starts it again when it ends by a fault. It is what systemd is to a service,
// for places without one. Make it with [NewKeeper], then [Keeper.Run] it.
//
//	running --ends by itself with 0, or never was ready--> Run returns its code
//	  |  ^
//	  |  +--pause--+
//	  +--ends------+   (killed, failed, or asked by Restart)
type Keeper struct {
	command func() *exec.Cmd
	log     *slog.Logger
	conn    *net.UnixConn
	readers sync.WaitGroup

	// Pause is how long after a fault the program is started again, at first; 0 = 100 ms.
	Pause time.Duration

	mu      sync.Mutex // guards what follows
	held    []holding
	child   *os.Process // nil = none runs
	ready   bool        // it has said so, at some time
	restart bool        // the end was asked for
}

// holding is a socket in the store. It stays a number: a file of Go would wake us for every packet.
type holding struct {
	name string
	fd   int
}

// NewKeeper makes one for the program that command starts; it is asked again for each start. Environment and sockets are added.
func NewKeeper(command func() *exec.Cmd, log *slog.Logger) (*Keeper, error) {
	// An abstract address needs no folder that can be written. Anybody can send to it, so the sender is looked at.
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@trunkline-" + rand.Text(), Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("keep sockets: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("keep sockets: %w", err), conn.Close())
	}
	return &Keeper{command: command, log: log, conn: conn}, nil
}

// Run starts the program and returns its exit code when it is over for good. When ctx ends it is asked to end (SIGTERM).
func (k *Keeper) Run(ctx context.Context) (code int, err error) {
	runtime.LockOSThread() // the child is told by the kernel when the thread that started it is gone
	defer runtime.UnlockOSThread()
	k.readers.Go(k.read)
	defer k.readers.Wait()
	defer k.close()
	pause := cmp.Or(k.Pause, firstPause)
	for {
		begun := time.Now()
		code, err := k.runOnce(ctx)
		again, asked := k.again(ctx, code)
		if err != nil || !again {
			return code, err
		}
		if asked {
			continue
		}
		if time.Since(begun) > steadyAfter {
			pause = cmp.Or(k.Pause, firstPause)
		}
		k.log.Warn("the program ended; it is started again", "code", code, "again_in", pause)
		select {
		case <-ctx.Done():
			return code, nil
		case <-time.After(pause):
		}
		pause = min(2*pause, max(longestPause, k.Pause))
	}
}

// again says whether the program shall run once more, and whether that was asked for.
func (k *Keeper) again(ctx context.Context, code int) (again, asked bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	asked = k.restart
	k.restart = false
	return ctx.Err() == nil && (asked || k.ready && code != 0), asked
}

// runOnce starts the program and waits for its end. What it has said by then is taken note of.
func (k *Keeper) runOnce(ctx context.Context) (code int, err error) {
	cmd, err := k.start()
	if err != nil {
		return 0, err
	}
	over := make(chan struct{})
	var stopping sync.WaitGroup
	stopping.Go(func() {
		select {
		case <-ctx.Done():
			k.end(cmd.Process, over)
		case <-over:
		}
	})
	err = cmd.Wait()
	close(over)
	stopping.Wait()
	if _, byStatus := errors.AsType[*exec.ExitError](err); err != nil && !byStatus {
		return 0, fmt.Errorf("wait for the program: %w", err)
	}
	if err := k.catchUp(); err != nil {
		k.log.Warn("what the program said last is not known", "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.child = nil
	code = cmd.ProcessState.ExitCode()
	if code < 0 {
		code = 128 + int(cmd.ProcessState.Sys().(syscall.WaitStatus).Signal()) // as a shell says it
	}
	return code, nil
}

// start runs the program with the sockets that are held. None runs now, so they may be blocking for a moment.
func (k *Keeper) start() (*exec.Cmd, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	cmd := k.command()
	names := make([]string, 0, len(k.held))
	for _, h := range k.held {
		fd, err := syscall.Dup(h.fd)
		if err != nil {
			k.log.Warn("a socket is not handed over", "name", h.name, "err", err)
			continue
		}
		syscall.CloseOnExec(fd)
		_ = syscall.SetNonblock(fd, false) // else os.NewFile would wait for packets
		file := os.NewFile(uintptr(fd), h.name)
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
		names = append(names, h.name)
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env,
		"NOTIFY_SOCKET="+k.conn.LocalAddr().String(), keeperPID+"="+strconv.Itoa(os.Getpid()), "LISTEN_PID=",
		"LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // nobody would keep its sockets any more
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the program: %w", err)
	}
	k.child = cmd.Process
	return cmd, nil
}

// end asks the program to end, and makes it when it does not.
func (k *Keeper) end(child *os.Process, over <-chan struct{}) {
	_ = child.Signal(syscall.SIGTERM) // it may be gone already
	select {
	case <-over:
	case <-time.After(stopPatience):
		k.log.Error("the program does not end; it is killed")
		_ = child.Kill()
	}
}

// Restart asks the program to end, and starts it again at once.
func (k *Keeper) Restart() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.restart = k.child != nil
	k.signal(syscall.SIGTERM)
}

// Signal passes a signal on to the program, if it runs.
func (k *Keeper) Signal(sig os.Signal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.signal(sig)
}

// signal is called with mu held.
func (k *Keeper) signal(sig os.Signal) {
	if k.child != nil {
		_ = k.child.Signal(sig) // it may be gone already
	}
}

// Held is how many sockets are in the store.
func (k *Keeper) Held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.held)
}

// close ends read and closes what is held.
func (k *Keeper) close() {
	_ = k.conn.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remove(func(holding) bool { return true })
}

// catchUp returns when everything that is in the socket now was read.
func (k *Keeper) catchUp() error {
	conn, err := net.DialUnix("unixgram", nil, k.conn.LocalAddr().(*net.UnixAddr))
	if err != nil {
		return err
	}
	defer conn.Close()
	return barrier(conn)
}

// read takes what the program says until the socket is closed.
func (k *Keeper) read() {
	text, control := make([]byte, 4096), make([]byte, 4096)
	for {
		n, controls, _, _, err := k.conn.ReadMsgUnix(text, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(readPause) // whatever it is, it shall not cost a processor
			continue
		}
		pid, fds := sender(control[:controls])
		k.mu.Lock()
		known := pid == os.Getpid() || k.child != nil && pid == k.child.Pid
		if known {
			fds = k.obey(string(bytes.TrimSpace(text[:n])), fds)
		}
		k.mu.Unlock()
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
	}
}

// sender reads who sent a message, as the kernel says, and what file descriptors came with it.
func sender(control []byte) (pid int, fds []int) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return 0, nil
	}
	for _, m := range messages {
		if who, err := syscall.ParseUnixCredentials(&m); err == nil {
			pid = int(who.Pid)
		}
		if sent, err := syscall.ParseUnixRights(&m); err == nil {
			fds = append(fds, sent...)
		}
	}
	return pid, fds
}

// obey does what a message says and returns the file descriptors that are not held. Called with mu held.
func (k *Keeper) obey(text string, fds []int) (rest []int) {
	said := make(map[string]string)
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		said[key] = value
	}
	if said["READY"] == "1" {
		k.ready = true
	}
	name := cmp.Or(said["FDNAME"], "stored")
	if said["FDSTOREREMOVE"] == "1" {
		k.remove(func(h holding) bool { return h.name == name })
	}
	if said["FDSTORE"] != "1" {
		return fds
	}
	k.remove(func(h holding) bool { return h.name == name })
	for i, fd := range fds {
		if len(k.held) >= maxKept {
			k.log.Warn("too many sockets to keep", "held", len(k.held))
			return fds[i:]
		}
		k.held = append(k.held, holding{name, fd})
	}
	return nil
}

// remove closes what is held. Called with mu held.
func (k *Keeper) remove(which func(holding) bool) {
	rest := k.held[:0]
	for _, h := range k.held {
		if which(h) {
			_ = syscall.Close(h.fd)
		} else {
			rest = append(rest, h)
		}
	}
	k.held = rest
}
