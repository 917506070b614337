// Command bridge puts telephones into the calls of Matrix rooms.
//
//	bridge -e > config.yaml        # the example config, every option explained
//	bridge -c config.yaml -g       # writes registration.yaml for the homeserver
//	bridge -c config.yaml -pin     # makes a PIN, and what a route must say for it
//	bridge -c config.yaml -doctor  # checks what usually goes wrong
//	bridge -c config.yaml          # runs
//	bridge -c config.yaml -keep    # runs it as a child that is started again, and keeps its sockets meanwhile
//
// Exit codes: 0 all is well, 1 something failed while starting or running (or the doctor found a problem), 2 the flags or
// the configuration are wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"trunkline/bridge"
	"trunkline/bridge/config"
	"trunkline/bridge/doctor"
	"trunkline/sockets"
)

// version is set by the linker.
var version = "development"

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	if os.Getenv("PION_LOG_DISABLE") == "" {
		// pion's TURN client writes to stderr whatever logger it is given; what it tells shows in the connection's own lines.
		os.Setenv("PION_LOG_DISABLE", "turnc")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// options are the flags of the command line.
type options struct {
	config                                   string
	example, register, diagnose, showVersion bool
	healthy, newPIN, keep                    bool
}

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	var o options
	flags := flag.NewFlagSet("bridge", flag.ContinueOnError)
	flags.SetOutput(errOut)
	flags.StringVar(&o.config, "c", "config.yaml", "the configuration `file`")
	flags.BoolVar(&o.example, "e", false, "print the example configuration and exit")
	flags.BoolVar(&o.register, "g", false, "write the registration for the homeserver and exit")
	flags.BoolVar(&o.diagnose, "doctor", false, "check what usually goes wrong, and exit")
	flags.BoolVar(&o.healthy, "healthy", false, "ask the running bridge whether it is ready, and exit (for container health checks)")
	flags.BoolVar(&o.newPIN, "pin", false, "make a PIN for the option pin of a route and exit")
	flags.BoolVar(&o.keep, "keep", false,
		"run as a child that is started again when it dies or at SIGHUP, and keep its sockets meanwhile (where there is no systemd)")
	flags.BoolVar(&o.showVersion, "v", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(errOut, "bridge: unexpected argument %q\n", flags.Arg(0))
		return exitUsage
	}
	switch {
	case o.showVersion:
		fmt.Fprintln(out, "trunkline", version)
		return 0
	case o.example:
		fmt.Fprintf(out, "%s", config.Example())
		return 0
	}
	cfg, err := config.Load(o.config)
	if err != nil {
		fmt.Fprintln(errOut, err)
		if errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintln(errOut, "`bridge -e` prints an example to begin with; -c names another file.")
		}
		return exitUsage
	}
	return withConfig(ctx, o, cfg, out, errOut)
}

func withConfig(ctx context.Context, o options, cfg config.Config, out, errOut io.Writer) int {
	switch {
	case o.healthy:
		return report(errOut, doctor.Healthy(ctx, cfg), exitFailed)
	case o.register:
		path := config.RegistrationPath(cfg, o.config)
		if err := config.WriteRegistration(path, config.NewRegistration(cfg)); err != nil {
			return report(errOut, err, exitUsage)
		}
		fmt.Fprintf(out, "wrote %s\nGive this file to the homeserver (Synapse: app_service_config_files) and restart it.\n", path)
		return 0
	case o.newPIN:
		pin, option, err := bridge.NewPIN(cfg)
		if err == nil {
			path, _ := filepath.Abs(cfg.DialIn.PINKey) // without a working directory: as it is written
			fmt.Fprintf(out, "PIN for callers: %s\nFor the route:   pin: %s\nIt counts for bridges with the key %s\n", pin, option, path)
		}
		return report(errOut, err, exitFailed)
	case o.diagnose:
		if !doctor.Examine(ctx, cfg, o.config, out) {
			return exitFailed
		}
		return 0
	case o.keep:
		return keep(ctx, o, newLogger(cfg.Log, errOut), errOut)
	}
	registration, err := config.LoadRegistration(cfg, o.config)
	if err != nil {
		return report(errOut, err, exitUsage)
	}
	log := newLogger(cfg.Log, errOut)
	kept := sockets.FromEnvironment(log)
	b, err := bridge.New(ctx, cfg, registration, kept, log)
	if err == nil {
		stop := drainOnSignal(b)
		err = b.Run(ctx)
		stop()
	}
	return report(errOut, errors.Join(err, kept.Close()), exitFailed)
}

// keep runs the bridge as a child, for as long as that shall run.
func keep(ctx context.Context, o options, log *slog.Logger, errOut io.Writer) int {
	keeper, err := sockets.NewKeeper(func() *exec.Cmd {
		// By its name, not by what runs here: a restart takes the program that is installed by then.
		cmd := exec.Command(os.Args[0], "-c", o.config)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return cmd
	}, log)
	if err != nil {
		return report(errOut, err, exitFailed)
	}
	stop := onSignals(func(sig os.Signal) {
		if sig == syscall.SIGHUP {
			keeper.Restart()
		} else {
			keeper.Signal(sig)
		}
	}, syscall.SIGHUP, syscall.SIGUSR1)
	defer stop()
	code, err := keeper.Run(ctx)
	if err != nil {
		return report(errOut, err, exitFailed)
	}
	return code
}

// drainOnSignal lets the calls that are up end and takes no new ones once SIGUSR1 comes.
func drainOnSignal(b *bridge.Bridge) (stop func()) {
	return onSignals(func(os.Signal) { b.Drain() }, syscall.SIGUSR1)
}

// onSignals does something at each of these signals until it is stopped.
func onSignals(do func(os.Signal), which ...os.Signal) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, which...)
	over := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-signals:
				do(sig)
			case <-over:
				return
			}
		}
	}()
	return func() { signal.Stop(signals); close(over) }
}

// report prints err, if any, and returns the exit code.
func report(errOut io.Writer, err error, code int) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(errOut, "bridge:", err)
	return code
}

func newLogger(c config.Log, out io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // the config was checked; this keeps a logger in any case
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(out, opts))
	}
	return slog.New(slog.NewTextHandler(out, opts))
}
