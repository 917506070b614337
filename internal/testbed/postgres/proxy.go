package postgres

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// Proxy stands before a server's socket. It can cease to pass anything on, as a dead network does, or cut its clients off.
type Proxy struct {
	Address string // of the same database by way of the proxy

	target string
	gate   sync.RWMutex // held for writing while it hangs

	mu    sync.Mutex // guards what follows
	isCut bool
	open  map[net.Conn]bool
}

// NewProxy makes one for a database's address. It lives as long as the test.
func NewProxy(t testing.TB, address string) *Proxy {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "proxy") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	q := u.Query()
	socket := ".s.PGSQL." + strconv.Itoa(port)
	p := &Proxy{target: filepath.Join(q.Get("host"), socket), open: make(map[net.Conn]bool)}
	q.Set("host", dir)
	u.RawQuery = q.Encode()
	p.Address = u.String()
	l, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go p.connect(in)
		}
	}()
	return p
}

// Hang passes nothing on until GoOn.
func (p *Proxy) Hang() { p.gate.Lock() }

// GoOn ends Hang; what waited is passed on.
func (p *Proxy) GoOn() { p.gate.Unlock() }

// Cut ends all connections, and every new one at once, until Mend.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = true
	for c := range p.open {
		c.Close()
	}
}

// Mend ends Cut.
func (p *Proxy) Mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = false
}

func (p *Proxy) connect(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("unix", p.target)
	if err != nil {
		return
	}
	defer out.Close()
	p.mu.Lock()
	if p.isCut {
		p.mu.Unlock()
		return
	}
	p.open[in], p.open[out] = true, true
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(in, out) })
	p.copy(out, in)
	both.Wait()
	p.mu.Lock()
	delete(p.open, in)
	delete(p.open, out)
	p.mu.Unlock()
}

func (p *Proxy) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.gate.RLock()
		_, err = to.Write(buf[:n])
		p.gate.RUnlock()
		if err != nil {
			return
		}
	}
}
