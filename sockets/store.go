package sockets

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// firstFD is the number of the first socket that a process gets (SD_LISTEN_FDS_START).
	firstFD = 3

	// maxKept is how many sockets one process keeps: two for each of more calls than one process has, and the listeners. Those
	// beyond it work, and end with the process.
	maxKept = 4096

	// sayPatience is how long a keeper may leave a message in its socket. A call's ports wait for that.
	sayPatience = time.Second

	// keeperPID names the parent in the environment of a child. systemd names the child instead (LISTEN_PID), which nobody can
	// know who starts it by the means of Go.
	keeperPID = "TRUNKLINE_KEEPER"
)

// Store is where a process's sockets are kept. A nil Store keeps none: sockets end with the process.
type Store struct {
	log    *slog.Logger
	keeper *net.UnixConn // nil = nobody keeps

	mu        sync.Mutex // guards what follows
	inherited []inherited
	kept      map[string]bool // names that the keeper has
}

// inherited is a socket of the process before that nobody has asked for yet.
type inherited struct {
	name string // under which it is kept
	own  string // the name that it would get now; another one makes it a stranger's
	addr netip.AddrPort
	file *os.File
}

// FromEnvironment takes over what the process before left, and finds out who keeps. Both may be nothing.
func FromEnvironment(log *slog.Logger) *Store {
	s := &Store{log: log, kept: make(map[string]bool)}
	s.inherit()
	if path := os.Getenv("NOTIFY_SOCKET"); path != "" {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			log.Warn("nobody keeps the sockets", "err", err)
		} else {
			s.keeper = conn
		}
	}
	return s
}

// inherit reads sd_listen_fds(3)'s variables.
func (s *Store) inherit() {
	forUs := os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) || os.Getenv(keeperPID) == strconv.Itoa(os.Getppid())
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if !forUs || err != nil {
		return
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i := range n {
		fd := firstFD + i
		syscall.CloseOnExec(fd)
		in := inherited{file: os.NewFile(uintptr(fd), "inherited")}
		if i < len(names) {
			in.name = names[i]
		}
		s.kept[in.name] = true
		if network, addr, err := identify(fd); err == nil {
			in.addr, in.own = addr, nameOf(network, addr)
		}
		s.inherited = append(s.inherited, in)
	}
}

// identify says what a file descriptor is: "udp", or "tcp" for a listener.
func identify(fd int) (network string, addr netip.AddrPort, err error) {
	kind, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	if err != nil {
		return "", addr, err
	}
	listens, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err != nil {
		return "", addr, err
	}
	switch {
	case kind == syscall.SOCK_DGRAM:
		network = "udp"
	case kind == syscall.SOCK_STREAM && listens == 1:
		network = "tcp"
	default:
		return "", addr, errors.New("neither UDP nor a listener")
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		return "", addr, err
	}
	switch a := bound.(type) {
	case *syscall.SockaddrInet4:
		addr = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *syscall.SockaddrInet6:
		addr = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	default:
		return "", addr, errors.New("no internet address")
	}
	return network, addr, nil
}

// nameOf is what a socket is kept under: no colons, which separate names in LISTEN_FDNAMES. All addresses are one, for
// which of the two wildcards a socket reports depends on the kernel.
func nameOf(network string, addr netip.AddrPort) string {
	host := addr.Addr().Unmap().String()
	if !addr.Addr().IsValid() || addr.Addr().IsUnspecified() {
		host = "any"
	}
	return network + "-" + strings.ReplaceAll(host, ":", "_") + "-" + strconv.Itoa(int(addr.Port()))
}

// ListenUDP returns the socket that is bound there.
func (s *Store) ListenUDP(at netip.AddrPort) (*net.UDPConn, error) {
	if file := s.take(nameOf("udp", at)); file != nil {
		conn, err := net.FilePacketConn(file)
		err = errors.Join(err, file.Close())
		if udp, ok := conn.(*net.UDPConn); ok && err == nil {
			return udp, nil
		}
		s.log.Warn("a kept socket cannot be used", "addr", at, "err", err)
	}
	return listen(s, "udp", at, func() (*net.UDPConn, error) { return net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)) })
}

// ListenTCP returns the listener that is bound there.
func (s *Store) ListenTCP(at netip.AddrPort) (*net.TCPListener, error) {
	if file := s.take(nameOf("tcp", at)); file != nil {
		l, err := net.FileListener(file)
		err = errors.Join(err, file.Close())
		if tcp, ok := l.(*net.TCPListener); ok && err == nil {
			return tcp, nil
		}
		s.log.Warn("a kept listener cannot be used", "addr", at, "err", err)
	}
	return listen(s, "tcp", at, func() (*net.TCPListener, error) { return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)) })
}

// listen binds a new socket and has it kept. One of an older configuration that is in the way goes first.
func listen[C syscall.Conn](s *Store, network string, at netip.AddrPort, bind func() (C, error)) (C, error) {
	conn, err := bind()
	if errors.Is(err, syscall.EADDRINUSE) && s.evict(network, at.Port()) {
		conn, err = bind()
	}
	if err == nil {
		s.keep(network, conn)
	}
	return conn, err
}

// take hands out an inherited socket.
func (s *Store) take(name string) *os.File {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, in := range s.inherited {
		if in.name == name && in.own == name {
			s.inherited = append(s.inherited[:i:i], s.inherited[i+1:]...)
			return in.file
		}
	}
	return nil
}

// evict closes the inherited sockets of a port here and at the keeper, and says whether there were any.
func (s *Store) evict(network string, port uint16) bool {
	if s == nil {
		return false
	}
	found := s.drop(func(in inherited) bool { return in.addr.Port() == port && strings.HasPrefix(in.own, network+"-") })
	if found == 0 {
		return false
	}
	if err := s.barrier(); err != nil {
		s.log.Warn("the keeper does not let go of a socket in time", "err", err)
	}
	return true
}

// Sweep closes what nobody asked for: it belongs to calls that are over, or to an older configuration.
func (s *Store) Sweep() {
	if s == nil {
		return
	}
	if n := s.drop(func(inherited) bool { return true }); n > 0 {
		s.log.Info("closed sockets of the process before", "sockets", n)
	}
}

func (s *Store) drop(which func(inherited) bool) (dropped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := s.inherited[:0:0]
	for _, in := range s.inherited {
		if !which(in) {
			rest = append(rest, in)
			continue
		}
		dropped++
		_ = in.file.Close() // nothing was written to it
		s.remove(in.name)
	}
	s.inherited = rest
	return dropped
}

// keep gives the keeper a copy. Not to be kept is no reason not to serve.
func (s *Store) keep(network string, conn syscall.Conn) {
	if s == nil || s.keeper == nil {
		return
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		s.log.Warn("a socket is not kept", "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, addr, err := identify(int(fd))
		name := nameOf(network, addr)
		switch {
		case err != nil:
			sent = err
		case len(s.kept) >= maxKept:
			sent = fmt.Errorf("%d sockets are kept already", len(s.kept))
		default:
			// Without FDPOLL=0 systemd drops a socket as soon as it has an error: one ICMP message is enough.
			if sent = s.say("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, int(fd)); sent == nil {
				s.kept[name] = true
			}
		}
	})
	if err = errors.Join(err, sent); err != nil {
		s.log.Warn("a socket is not kept", "err", err)
	}
}

// Release says that the socket bound to an address is closed for good.
func (s *Store) Release(addr net.Addr) {
	at, err := netip.ParseAddrPort(addr.String())
	if s == nil || err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(nameOf(addr.Network(), at))
}

// remove is called with mu held.
func (s *Store) remove(name string) {
	if !s.kept[name] || s.keeper == nil {
		return
	}
	delete(s.kept, name)
	if err := s.say("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
		s.log.Warn("the keeper keeps a socket for nothing", "err", err)
	}
}

// Ready says that the process does its work.
func (s *Store) Ready() {
	if s == nil || s.keeper == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.say("READY=1"); err != nil {
		s.log.Warn("the keeper is not told", "err", err)
	}
}

// Kept says that somebody keeps the sockets, and starts this program again when it ends.
func (s *Store) Kept() bool { return s != nil && s.keeper != nil }

// Close lets go of what is left here. The keeper's copies stay.
func (s *Store) Close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, in := range s.inherited {
		errs = append(errs, in.file.Close())
	}
	s.inherited = nil
	if s.keeper != nil {
		errs = append(errs, s.keeper.Close())
		s.keeper = nil
	}
	return errors.Join(errs...)
}

// barrier returns when the keeper has done all that it was told before (sd_notify_barrier(3)): it closes the pipe then.
func (s *Store) barrier() error {
	if s.keeper == nil {
		return nil
	}
	return barrier(s.keeper)
}

func barrier(keeper *net.UnixConn) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = say(keeper, "BARRIER=1", int(w.Fd()))
	if err = errors.Join(err, w.Close(), r.SetReadDeadline(time.Now().Add(sayPatience))); err != nil {
		return err
	}
	if _, err = r.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("no end of the barrier")
	}
	return nil
}

// say is called with mu held.
func (s *Store) say(text string, fds ...int) error { return say(s.keeper, text, fds...) }

func say(keeper *net.UnixConn, text string, fds ...int) error {
	if err := keeper.SetWriteDeadline(time.Now().Add(sayPatience)); err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	raw, err := keeper.SyscallConn() // WriteMsgUnix refuses datagram sockets that are connected
	if err != nil {
		return fmt.Errorf("tell the keeper: %w", err)
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = syscall.Sendmsg(int(fd), []byte(text), rights, nil, 0)
		return !errors.Is(sent, syscall.EAGAIN)
	})
	if err = cmp.Or(err, sent); err != nil {
		return fmt.Errorf("tell the keeper: %w", err)
	}
	return nil
}
