package sockets

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The keeper is a double of systemd; here is systemd itself, where the user has one that runs (a desktop, a login with logind;
// containers have none).
func TestSystemdKeepsTheSocketsOfAKilledProcess(t *testing.T) {
	if out, err := systemctl("show", "--property=Version"); err != nil {
		t.Skipf("this user has no systemd: %v: %s", err, out)
	}
	address, unit := freeAddress(t), fmt.Sprintf("trunkline-test-%d.service", os.Getpid())
	run := exec.Command("systemd-run", "--user", "--unit="+unit, "--collect", "--property=Type=notify", "--property=NotifyAccess=main",
		"--property=FileDescriptorStoreMax=10", "--property=Restart=on-failure", "--property=RestartSec=300ms",
		"--setenv="+childSettings+"="+address, os.Args[0])
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("systemd-run: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := systemctl("stop", unit); err != nil {
			t.Errorf("stop %s: %v: %s", unit, err, out)
		}
	})
	phone := dial(t, address)
	first := askFor(t, phone, "hello", patience)
	if first == 0 {
		t.Fatal("the service does not answer")
	}
	stored := func() string {
		out, err := systemctl("show", "--property=NFileDescriptorStore", "--value", unit)
		if err != nil {
			t.Fatalf("ask systemd: %v: %s", err, out)
		}
		return strings.TrimSpace(out)
	}
	for i := range 2 { // the second one has inherited what it leaves
		if n := stored(); n != "1" {
			t.Errorf("systemd keeps %s sockets, want 1", n)
		}
		if out, err := systemctl("kill", "--signal=KILL", unit); err != nil {
			t.Fatalf("kill %s: %v: %s", unit, err, out)
		}
		for deadline := time.Now().Add(patience); alive(first); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the service does not die")
			}
		}
		second := askFor(t, phone, fmt.Sprint("meanwhile ", i), patience)
		if second == 0 || second == first {
			t.Fatalf("what was sent while no process ran was answered by %d; the one before is %d", second, first)
		}
		first = second
	}
	if askFor(t, phone, "release", patience) == 0 {
		t.Fatal("nobody answers")
	}
	for deadline := time.Now().Add(patience); stored() != "0"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("systemd still keeps %s sockets, want none", stored())
		}
	}
}

func systemctl(args ...string) (string, error) {
	out, err := exec.Command("systemctl", append([]string{"--user"}, args...)...).CombinedOutput()
	return string(out), err
}

func alive(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}
