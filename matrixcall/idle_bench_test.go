package matrixcall

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkGhostInCall prints what a ghost that is in a call, and hears nothing, costs the bridge and a real Synapse:
// in a room where nobody speaks, in one with three messages a second, and with the waits of a call's first minutes.
func BenchmarkGhostInCall(b *testing.B) {
	ghosts := 20
	if n, _ := strconv.Atoi(os.Getenv("GHOSTS")); n > 0 {
		ghosts = n
	}
	bed := realBed(b)
	bed.start()
	if os.Getenv("SYNC") != "" {
		bed.service.sliding.announced.Store(false)
	}
	alice := bed.person("alice", false)
	room := alice.room(bed.service.Bot())
	all := make([]*Ghost, ghosts)
	var wg sync.WaitGroup
	for n := range all {
		wg.Go(func() {
			all[n] = bed.ghost(fmt.Sprintf("_sip_idle%d", n))
			if err := all[n].EnterRoom(b.Context(), room); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	time.Sleep(time.Second)
	for _, measured := range []struct {
		name     string
		polling  bool
		messages int // a second
	}{{"none polls", false, 0}, {"silent room", true, 0}, {"3 messages a second, none polls", false, 3}, {"3 messages a second", true, 3}} {
		b.Run(measured.name, func(b *testing.B) {
			var ears []*ear
			if measured.polling {
				for _, g := range all {
					e := &ear{info: MembershipInfo{Ghost: g.user, Device: g.device, Room: room, ConfID: "conf"}}
					if err := bed.service.attachConference(b.Context(), e); err != nil {
						b.Fatal(err)
					}
					ears = append(ears, e)
				}
			}
			time.Sleep(2 * time.Second)
			var length, ours, theirs time.Duration
			polls := bed.service.metrics.Polls.Load()
			for b.Loop() {
				began, ourCPU, theirCPU := time.Now(), ownCPU(b), synapseCPU(b, bed)
				for range 15 {
					for range measured.messages {
						if _, err := alice.client.SendText(b.Context(), room, "talk"); err != nil {
							b.Fatal(err)
						}
					}
					time.Sleep(time.Second)
				}
				length += time.Since(began)
				ours += ownCPU(b) - ourCPU
				theirs += synapseCPU(b, bed) - theirCPU
			}
			each := length.Seconds() * float64(ghosts)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(bed.service.metrics.Polls.Load()-polls)/each, "polls/s/ghost")
			b.ReportMetric(float64(ours.Microseconds())/1000/each, "our-ms/s/ghost")
			b.ReportMetric(float64(theirs.Microseconds())/1000/each, "synapse-ms/s/ghost")
			for _, e := range ears {
				bed.service.detachConference(e)
			}
		})
	}
}

func ownCPU(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func synapseCPU(b *testing.B, bed *bed) time.Duration {
	cpu, err := bed.synapse.CPU()
	if err != nil {
		b.Fatal(err)
	}
	return cpu
}
