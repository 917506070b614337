// Command demo shows the bridge's main job and listens to it: a scripted room member and a scripted phone talk through
// the real bridge and a real Synapse, all on loopback. It prints each step as it happens, then a timeline and what each
// side heard, leaves both recordings, and exits 0 only if both sides really heard the other.
//
//	demo -bridge build/bridge            # installs Synapse from PyPI the first time
//	demo -bridge build/bridge -offline   # a homeserver stand-in instead of Synapse
//	demo -attach -homeserver http://127.0.0.1:8008 -register-secret S -sip 127.0.0.1:5060 -number 100 -alias meeting
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// limit is the longest the demo may take; the first run downloads Synapse, perhaps over a slow line.
const limit = 8 * time.Minute

// options are the flags.
type options struct {
	bridge  string
	offline bool
	out     string

	attach                                bool
	homeserver, secret, sip, number, room string
	bot                                   string
	phones                                int
}

func main() {
	var o options
	flag.StringVar(&o.bridge, "bridge", "build/bridge", "the bridge's `program`")
	flag.BoolVar(&o.offline, "offline", false, "use a homeserver stand-in instead of Synapse")
	flag.StringVar(&o.out, "out", ".", "the `folder` for the recordings")
	flag.BoolVar(&o.attach, "attach", false, "call through a deployment that runs already")
	flag.StringVar(&o.homeserver, "homeserver", "http://127.0.0.1:8008", "attach: its homeserver")
	flag.StringVar(&o.secret, "register-secret", "", "attach: the homeserver's registration_shared_secret")
	flag.StringVar(&o.sip, "sip", "127.0.0.1:5060", "attach: the bridge's SIP address")
	flag.StringVar(&o.number, "number", "100", "the number to dial")
	flag.StringVar(&o.room, "alias", "demo", "the room's alias (localpart) that the number leads to; it is created")
	flag.StringVar(&o.bot, "bot", "sipbot", "attach: localpart of the bridge's bot")
	flag.IntVar(&o.phones, "phones", 0, "so many more phones join at the end, and what they cost is printed")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("the demo took too long"))
	err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\nFAILED:", err)
		if load, busy := machineIsBusy(); busy {
			fmt.Fprintf(os.Stderr, "This machine is too busy for real-time sound (load %s on %d processors): try again when it is idle.\n", load, runtime.NumCPU())
		}
		os.Exit(1)
	}
}

// machineIsBusy tells the load of the last minute, and whether it is more than the machine has processors.
func machineIsBusy() (load string, busy bool) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", false
	}
	load, _, _ = strings.Cut(string(text), " ")
	average, err := strconv.ParseFloat(load, 64)
	return load, err == nil && average > 1.5*float64(runtime.NumCPU())
}

func run(ctx context.Context, o options) (err error) {
	show := newProgress(os.Stdout)
	if o.offline {
		show.say("OFFLINE: a stand-in replaces the homeserver; bridge, sockets and sound are real")
	}
	w, err := openWorld(ctx, o, show)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(err != nil)) }()
	talk, err := w.call(ctx)
	if err != nil {
		return err
	}
	return talk.judge(o.out, show)
}
