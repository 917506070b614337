package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"gopkg.in/yaml.v3"
)

// ErrNoNetwork says that this user may not make networks here.
var ErrNoNetwork = errors.New("machines of their own need root and network namespaces (ip netns)")

// Network is some machines on one Ethernet: network namespaces, whose cables go to a switch in a namespace of its own, so
// that no packet filter of this machine stands between them. This machine is on the Ethernet, too.
type Network struct {
	lab    *Lab
	prefix string // of the names of namespaces
	subnet string // its first three numbers
	last   int    // host number given last

	// Homeserver is where machines reach Synapse, which listens on loopback only. Node is where Synapse finds the application
	// service: as behind a load balancer, one address for all nodes.
	Homeserver *Forwarder
	Node       *Forwarder
}

// Machine is one network namespace with one address. A nil one is the machine that runs the lab.
type Machine struct {
	namespace string
	ip        string
}

// NewNetwork makes an Ethernet without machines. The bridge of the lab must have stopped, for its address is the network's.
func (l *Lab) NewNetwork() (*Network, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNoNetwork
	}
	sweepNamespaces()
	pid := os.Getpid()
	n := &Network{lab: l, prefix: fmt.Sprintf("%s%d-", namespacePrefix, pid), subnet: fmt.Sprintf("10.201.%d", pid%250), last: 1}
	sw := n.prefix + "switch"
	if err := ip("netns", "add", sw); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoNetwork, err)
	}
	l.own("switch", func() error { return ip("netns", "del", sw) }) // takes the cables with it
	cable := fmt.Sprintf("tl%d", pid)
	for _, args := range [][]string{
		{"-n", sw, "link", "add", "br0", "type", "bridge"},
		{"-n", sw, "link", "set", "br0", "up"},
		{"link", "add", cable, "type", "veth", "peer", "name", "lab", "netns", sw},
		{"-n", sw, "link", "set", "lab", "master", "br0", "up"},
		{"addr", "add", n.subnet + ".1/24", "dev", cable},
		{"link", "set", cable, "up"},
	} {
		if err := ip(args...); err != nil {
			return nil, fmt.Errorf("make a network: %w", err)
		}
	}
	var err error
	if n.Homeserver, err = l.forward(n.subnet + ".1:0"); err != nil {
		return nil, err
	}
	n.Homeserver.To(strings.TrimPrefix(l.Homeserver(), "http://"))
	n.Node, err = l.forward(fmt.Sprintf("127.0.0.1:%d", l.bridge.as))
	return n, err
}

// NewMachine connects one more machine.
func (n *Network) NewMachine(name string) (*Machine, error) {
	n.last++
	m := &Machine{namespace: n.prefix + name, ip: fmt.Sprintf("%s.%d", n.subnet, n.last)}
	if err := ip("netns", "add", m.namespace); err != nil {
		return nil, fmt.Errorf("make machine %s: %w", name, err)
	}
	n.lab.own("machine "+name, func() error { return ip("netns", "del", m.namespace) })
	for _, args := range [][]string{
		{"link", "add", name, "netns", n.prefix + "switch", "type", "veth", "peer", "name", "eth0", "netns", m.namespace},
		{"-n", n.prefix + "switch", "link", "set", name, "master", "br0", "up"},
		{"-n", m.namespace, "addr", "add", m.ip + "/24", "dev", "eth0"},
		{"-n", m.namespace, "link", "set", "lo", "up"},
		{"-n", m.namespace, "link", "set", "eth0", "up"},
	} {
		if err := ip(args...); err != nil {
			return nil, fmt.Errorf("make machine %s: %w", name, err)
		}
	}
	return m, nil
}

// NewNode prepares a bridge beside which others may work on the same database.
func (n *Network) NewNode(name string, m *Machine) (*Bridge, error) {
	node := *n.lab.bridge
	dir := filepath.Join(n.lab.dir, "node-"+name)
	node.machine, node.host, node.sip, node.process = m, m.ip, m.ip+":5060", nil
	node.config, node.log = filepath.Join(dir, "config.yaml"), filepath.Join(dir, "log")
	content, err := os.ReadFile(n.lab.bridge.config)
	if err != nil {
		return nil, err
	}
	config := map[string]map[string]any{}
	var whole map[string]any
	if err := yaml.Unmarshal(content, &whole); err != nil {
		return nil, fmt.Errorf("read the bridge's config: %w", err)
	}
	for section, value := range whole {
		if fields, ok := value.(map[string]any); ok {
			config[section] = fields
		}
	}
	maps.Copy(config["homeserver"], map[string]any{"address": "http://" + n.Homeserver.Address()})
	maps.Copy(config["appservice"], map[string]any{"listen": fmt.Sprintf("%s:%d", m.ip, node.as)})
	maps.Copy(config["database"], map[string]any{"node": name})
	maps.Copy(config["sip"], map[string]any{
		"listen": []any{map[string]string{"transport": "udp", "address": node.sip}},
		"trunks": []any{map[string]any{"name": "lab", "networks": []string{n.subnet + ".0/24"}}},
	})
	maps.Copy(config["rtp"], map[string]any{"address": m.ip})
	maps.Copy(config["webrtc"], map[string]any{"loopback": false})
	maps.Copy(config["admin"], map[string]any{"listen": fmt.Sprintf("%s:%d", m.ip, node.admin)})
	if content, err = yaml.Marshal(whole); err != nil {
		return nil, err
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(node.config, content, 0o600)); err != nil {
		return nil, err
	}
	n.lab.own("node "+name, func() error { node.Kill(); return nil })
	return &node, nil
}

// Application returns where the homeserver would reach this bridge.
func (b *Bridge) Application() string { return fmt.Sprintf("%s:%d", b.host, b.as) }

// command runs a program on the machine.
func (m *Machine) command(program string, args ...string) *exec.Cmd {
	if m == nil {
		return exec.Command(program, args...)
	}
	// It becomes the program, so that signals reach it.
	return exec.Command("ip", append([]string{"netns", "exec", m.namespace, program}, args...)...)
}

func (m *Machine) address() string {
	if m == nil {
		return "127.0.0.1"
	}
	return m.ip
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// namespacePrefix marks our namespaces for sweepNamespaces.
const namespacePrefix = "trunkline-"

// sweepNamespaces removes what labs have left that were killed before they could clean up.
func sweepNamespaces() {
	namespaces, _ := filepath.Glob("/run/netns/" + namespacePrefix + "*")
	for _, path := range namespaces {
		name := filepath.Base(path)
		owner, _, _ := strings.Cut(strings.TrimPrefix(name, namespacePrefix), "-")
		if pid, err := strconv.Atoi(owner); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = ip("netns", "del", name)
		}
	}
}

// Forwarder passes connections on to an address that can be changed, as a load balancer does.
type Forwarder struct {
	listener net.Listener
	target   atomic.Value // string

	conns sync.WaitGroup
	mu    sync.Mutex
	open  map[net.Conn]bool
}

// forward listens until the lab is closed.
func (l *Lab) forward(address string) (*Forwarder, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("forward connections: %w", err)
	}
	f := &Forwarder{listener: listener, open: map[net.Conn]bool{}}
	f.conns.Go(f.serve)
	l.own("forwarder of "+address, f.Close)
	return f, nil
}

// Address returns where it listens.
func (f *Forwarder) Address() string { return f.listener.Addr().String() }

// To says where connections go from now on; those that are there are cut.
func (f *Forwarder) To(address string) {
	f.target.Store(address)
	f.mu.Lock()
	defer f.mu.Unlock()
	for conn := range f.open {
		conn.Close()
	}
}

// Close ends all connections. Calling it again does nothing.
func (f *Forwarder) Close() error {
	err := f.listener.Close()
	f.To("")
	f.conns.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (f *Forwarder) serve() {
	for {
		near, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.conns.Go(func() { f.pass(near) })
	}
}

// pass copies both ways until one end closes.
func (f *Forwarder) pass(near net.Conn) {
	defer near.Close()
	target, _ := f.target.Load().(string)
	far, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", target)
	if err != nil {
		return
	}
	defer far.Close()
	f.mu.Lock()
	f.open[near], f.open[far] = true, true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.open, near)
		delete(f.open, far)
	}()
	var back sync.WaitGroup
	back.Go(func() { _, _ = io.Copy(near, far); near.Close(); far.Close() })
	_, _ = io.Copy(far, near)
	near.Close()
	far.Close()
	back.Wait()
}
