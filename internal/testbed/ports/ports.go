// Package ports finds ports for programs under test, which bind them later, and again after they were killed. What the system hands out
// by itself will not do: whoever connects somewhere meanwhile may get it.
package ports

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync/atomic"
)

// Below those that the system hands out by itself (32768 and up), and below those of RTP (20000 and up).
const (
	first = 12000
	pairs = 4000
	apart = 1609 // pairs from one to the next, and all come in turn: a program may take what is above its own
)

// next begins somewhere else in each process, so that those that run side by side seldom meet, and gives none twice.
var next = func() *atomic.Uint32 {
	n := new(atomic.Uint32)
	n.Store(rand.Uint32N(pairs))
	return n
}()

// Free returns n ports of 127.0.0.1, all even, that are free for UDP and TCP now, as is the one above each: SIP has TLS there, and RTP
// its reports.
func Free(n int) ([]int, error) {
	var found []int
	for range pairs {
		if len(found) == n {
			return found, nil
		}
		if port := first + 2*int(next.Add(1)*apart%pairs); IsFree(port) && IsFree(port+1) {
			found = append(found, port)
		}
	}
	return nil, errors.New("find a free port: 127.0.0.1 has none left")
}

// IsFree reports whether 127.0.0.1 has the port free for UDP and TCP.
func IsFree(port int) bool {
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return false
	}
	defer udp.Close()
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return false
	}
	return tcp.Close() == nil
}
