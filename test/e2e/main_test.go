//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"trunkline/test/lab"
)

// bed is the lab of all cases; each case has users, a room and a number of its own.
var bed *lab.Lab

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	bed, err = lab.Start(ctx, lab.Options{
		Browser: true, Bridge: true, Binary: os.Getenv("TRUNKLINE_BRIDGE"), Progress: os.Stdout, Keep: os.Getenv("KEEP") != "",
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() { // Ctrl-C in mid-case: the cases do not look, the lab's processes must go
		select {
		case <-ctx.Done():
			bed.Close()
			os.Exit(130)
		case <-ended:
		}
	}()
	defer func() {
		if memory, err := bed.Bridge().Memory(); err == nil {
			fmt.Printf("bridge: %d MiB resident at the end\n", memory>>20)
		}
		if err := bed.Close(); err != nil && !errors.Is(err, os.ErrNotExist) {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}()
	return m.Run()
}
