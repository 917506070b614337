package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"trunkline/internal/testbed/ports"
)

// process is a program of the lab, with its own process group and log file.
type process struct {
	name   string
	log    string // path
	cmd    *exec.Cmd
	alive  sync.Mutex    // held while it is waited for, and while it is sent a signal: its number may be another's afterwards
	exited chan struct{} // closed once waited for
	err    error         // why it ended; read after exited
}

// startProcess starts cmd with its output in the file log.
func startProcess(name, log string, cmd *exec.Cmd) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	// The group lets stop reach children; the death signal reaches the program when we are killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, log: log, cmd: cmd, exited: make(chan struct{})}
	go p.wait()
	return p, nil
}

// wait waits for the process, and ends what it has left behind in its group: as long as nobody has waited for it, the number is its own.
func (p *process) wait() {
	pid, err := p.cmd.Process.Pid, error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		err = unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	}
	p.alive.Lock()
	defer p.alive.Unlock()
	if err == nil {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	p.err = p.cmd.Wait()
	close(p.exited)
}

// stop asks the process group to end and kills it after the grace time. An ended process is fine.
func (p *process) stop(grace time.Duration) error {
	if p == nil {
		return nil
	}
	_ = p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(grace):
		_ = p.signal(syscall.SIGKILL)
		<-p.exited
		return fmt.Errorf("%s did not end within %s, killed", p.name, grace)
	}
	return nil
}

// kill ends the process as a crash would.
func (p *process) kill() {
	if p == nil {
		return
	}
	_ = p.signal(syscall.SIGKILL)
	<-p.exited
}

// signal sends a signal to the whole group, if the process is there.
func (p *process) signal(sig syscall.Signal) error {
	p.alive.Lock()
	defer p.alive.Unlock()
	if !p.running() {
		return os.ErrProcessDone
	}
	return syscall.Kill(-p.cmd.Process.Pid, sig)
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// tail returns the last n bytes of the process's output.
func (p *process) tail(n int) string {
	if p == nil {
		return ""
	}
	return tailFile(p.log, n)
}

func tailFile(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.ToValidUTF8(string(b[max(0, len(b)-n):]), "?")
}

// holdPort opens a port for UDP and TCP, so that nobody else gets it until release is called.
func holdPort() (port int, release func(), err error) {
	for range 200 {
		found, err := ports.Free(1)
		if err != nil {
			return 0, nil, fmt.Errorf("hold a port: %w", err)
		}
		at := net.IPv4(127, 0, 0, 1)
		udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: at, Port: found[0]})
		if err != nil {
			continue
		}
		tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: at, Port: found[0]})
		if err == nil {
			return found[0], sync.OnceFunc(func() { udp.Close(); tcp.Close() }), nil
		}
		udp.Close()
	}
	return 0, nil, errors.New("hold a port: 127.0.0.1 has none left")
}
