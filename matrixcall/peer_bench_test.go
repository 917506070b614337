package matrixcall

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"trunkline/matrixcall/mesh"
)

// benchPeers is how many peers are connected at a time; benchChild tells the process that plays them.
const (
	benchPeers = 100
	benchChild = "TRUNKLINE_BENCH_PEERS"
	// maxPeerKiB is what an idle peer may cost, heap and stacks.
	maxPeerKiB = 250
)

// BenchmarkIdlePeer connects peers that live in another process, so that only our side of each connection counts, and
// measures what one costs when nobody speaks: memory, goroutines, and the processor's time for the handshake.
func BenchmarkIdlePeer(b *testing.B) {
	if os.Getenv(benchChild) != "" {
		playPeers(b)
		return
	}
	far := startPeers(b)
	e, err := newEngine(ICEConfig{UDPPort: freePort(b), Loopback: true, Addresses: []string{"127.0.0.1"}, NoMDNS: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	far.connect(b, e).close() // whatever is made once
	for b.Loop() {
		before := measure()
		var conns []*benchConn
		for range benchPeers {
			conns = append(conns, far.connect(b, e))
		}
		spent := measure()
		for _, c := range conns {
			c.awaitPacket(b)
		}
		time.Sleep(time.Second) // what was only for the handshake has gone
		after := measure()
		per := func(v float64) float64 { return v / benchPeers }
		kib := per(after.memory-before.memory) / 1024
		b.ReportMetric(kib, "KiB/peer")
		b.ReportMetric(per(after.resident-before.resident)/1024, "KiB-resident/peer")
		b.ReportMetric(per(float64(after.goroutines-before.goroutines)), "goroutines/peer")
		b.ReportMetric(per(float64((spent.cpu - before.cpu).Microseconds())), "µs-cpu/handshake")
		b.ReportMetric(per(float64(spent.at.Sub(before.at).Microseconds())), "µs-wall/handshake")
		if kib > maxPeerKiB {
			b.Errorf("an idle peer costs %.0f KiB, want at most %d", kib, maxPeerKiB)
		}
		for _, c := range conns {
			c.close()
		}
	}
}

// measurement is what the process uses.
type measurement struct {
	at         time.Time
	cpu        time.Duration
	memory     float64 // heap in use and stacks
	resident   float64
	goroutines int
}

func measure() (m measurement) {
	m.at = time.Now()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err == nil {
		m.cpu = time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	}
	runtime.GC()
	runtime.GC() // what only a finalizer or a pool held
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	m.memory, m.goroutines = float64(stats.HeapAlloc+stats.StackInuse), runtime.NumGoroutine()
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) > 1 {
			pages, _ := strconv.Atoi(fields[1])
			m.resident = float64(pages * os.Getpagesize())
		}
	}
	return m
}

// farPeers is the process that plays the peers: an offer in, an answer out, each on a line.
type farPeers struct {
	in  io.Writer
	out *bufio.Reader
}

func startPeers(b *testing.B) *farPeers {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkIdlePeer$", "-test.benchtime=1x")
	child.Env = append(os.Environ(), benchChild+"=1")
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := child.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cancel(); _ = child.Wait() })
	return &farPeers{in: in, out: bufio.NewReaderSize(out, 1<<16)}
}

func (f *farPeers) answer(b *testing.B, offer string) string {
	b.Helper()
	line, err := json.Marshal(offer)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.in.Write(append(line, '\n')); err != nil {
		b.Fatal(err)
	}
	for {
		line, err := f.out.ReadBytes('\n')
		if err != nil {
			b.Fatalf("the far process: %v", err)
		}
		var sdp string
		if line[0] == '"' && json.Unmarshal(line, &sdp) == nil { // else the testing package's
			return sdp
		}
	}
}

// benchConn is our side of one connection.
type benchConn struct {
	*peerConn
	wg     sync.WaitGroup
	up     chan struct{}
	packet atomic.Bool
}

func (f *farPeers) connect(b *testing.B, e *engine) *benchConn {
	b.Helper()
	track, err := webrtc.NewTrackLocalStaticRTP(opusCodec, "audio0", "s")
	if err != nil {
		b.Fatal(err)
	}
	offers := make(chan string, 1)
	c := &benchConn{up: make(chan struct{})}
	var once sync.Once
	c.peerConn = &peerConn{
		id: 1, engine: e, log: slog.New(slog.DiscardHandler), metrics: new(Metrics), track: track,
		report: func(ev mesh.Event) {
			switch ev := ev.(type) {
			case mesh.OfferReady:
				offers <- ev.SDP
			case mesh.ConnState:
				once.Do(func() { close(c.up) })
			case mesh.ConnFailed:
				b.Error(ev.Err)
			}
		},
		event: func(Event) {}, speaks: func(bool) {}, packet: func(PeerKey, *rtp.Packet) { c.packet.Store(true) },
		turn: func(context.Context) []TURNServer { return nil },
	}
	c.start(context.Background(), &c.wg)
	c.do("open", func() error { return c.open(true) })
	c.do("offer", func() error { return c.createOffer(false) })
	answer := f.answer(b, <-offers)
	c.do("apply", func() error { return c.applyAnswer(answer) })
	<-c.up
	return c
}

// awaitPacket waits until the peer has been heard: an idle peer is a silent one, not one that never spoke.
func (c *benchConn) awaitPacket(b *testing.B) {
	b.Helper()
	for range 500 {
		if c.packet.Load() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatal("a peer was not heard")
}

func (c *benchConn) close() {
	c.cancel(nil)
	c.wg.Wait()
}

// playPeers is the far process: browsers, as far as pion can be one, that say a word when connected and then nothing.
func playPeers(b *testing.B) {
	media := &webrtc.MediaEngine{}
	if err := media.RegisterDefaultCodecs(); err != nil {
		b.Fatal(err)
	}
	var s webrtc.SettingEngine
	s.SetIncludeLoopbackCandidate(true)
	api := webrtc.NewAPI(webrtc.WithSettingEngine(s), webrtc.WithMediaEngine(media))
	lines := bufio.NewReaderSize(os.Stdin, 1<<16)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			os.Exit(0)
		}
		var offer string
		if err := json.Unmarshal(line, &offer); err != nil {
			b.Fatal(err)
		}
		answer, err := playPeer(api, offer)
		if err != nil {
			b.Fatal(err)
		}
		if line, err = json.Marshal(answer); err != nil {
			b.Fatal(err)
		}
		os.Stdout.Write(append(append([]byte{'\n'}, line...), '\n'))
	}
}

func playPeer(api *webrtc.API, offer string) (string, error) {
	pc, err := api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return "", err
	}
	track, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus}, "a", "s")
	if err != nil {
		return "", err
	}
	pc.OnConnectionStateChange(func(s webrtc.PeerConnectionState) {
		switch s {
		case webrtc.PeerConnectionStateConnected:
			for n := range uint16(5) {
				_ = track.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: n, Timestamp: uint32(n) * 960}, Payload: make([]byte, 60)})
				time.Sleep(20 * time.Millisecond)
			}
		case webrtc.PeerConnectionStateDisconnected, webrtc.PeerConnectionStateFailed:
			_ = pc.Close()
		}
	})
	if _, err := pc.AddTrack(track); err != nil {
		return "", err
	}
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offer}); err != nil {
		return "", err
	}
	answer, err := pc.CreateAnswer(nil)
	if err != nil {
		return "", err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(answer); err != nil {
		return "", err
	}
	<-gathered
	return pc.LocalDescription().SDP, nil
}

func freePort(t testing.TB) int {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	return socket.LocalAddr().(*net.UDPAddr).Port
}
