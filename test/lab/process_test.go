package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shell runs a script as a program of the lab.
func shell(t *testing.T, script string) *process {
	t.Helper()
	p, err := startProcess("shell", filepath.Join(t.TempDir(), "log"), exec.Command("/bin/sh", "-c", script))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func (p *process) ends(t *testing.T) {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		t.Fatal("the process does not end")
	}
}

// The number of a process that has ended is another group's meanwhile.
func TestEndedProcessIsSentNoSignal(t *testing.T) {
	ended, other := shell(t, "exit 3"), shell(t, "exec sleep 60")
	ended.ends(t)
	if ended.err == nil || ended.err.Error() != "exit status 3" {
		t.Errorf("it ended with %v, want exit status 3", ended.err)
	}
	ended.cmd.Process.Pid = other.cmd.Process.Pid
	ended.kill()
	if err := ended.stop(time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := ended.signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal: %v, want %v", err, os.ErrProcessDone)
	}
	if err := other.stop(30 * time.Second); err != nil { // a signal would have come first
		t.Error(err)
	}
	if other.err == nil || other.err.Error() != "signal: terminated" {
		t.Errorf("the other group ended with %v, want our SIGTERM alone", other.err)
	}
}

func TestProcessLeavesNothingBehind(t *testing.T) {
	p := shell(t, "sleep 60 & echo $!")
	p.ends(t)
	child := strings.TrimSpace(p.tail(20))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", child))
		if child != "" && (err != nil || strings.Contains(string(stat), ") Z ")) { // nobody may wait for it here
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the child %q is still there: %s", child, stat)
		}
	}
}
