package synapse_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"trunkline/internal/testbed/postgres"
	"trunkline/internal/testbed/synapse"
)

// TestNothingSurvivesAKilledTest starts this test binary again, lets it start both servers, kills it, and looks for
// what is left.
func TestNothingSurvivesAKilledTest(t *testing.T) {
	if os.Getenv("TESTBED_ORPHAN") != "" {
		startAndWaitForDeath(t)
		return
	}
	synapse.Wanted(t)
	later := synapse.Config{Postgres: postgres.New(t)} // skips where there is none
	cmd := exec.Command(os.Args[0], "-test.run", "^TestNothingSurvivesAKilledTest$")
	cmd.Env = append(os.Environ(), "TESTBED_ORPHAN=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dirs, pids := readChildren(t, out)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if len(pids) != 2 {
		t.Fatalf("children %v, want Synapse and PostgreSQL", pids)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var alive []int
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil && !zombie(pid) {
				alive = append(alive, pid)
			}
		}
		if len(alive) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes %v are still there", alive)
		}
	}
	synapse.New(t, later)
	postgres.New(t) // later starts remove what was left on disk
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is still there", dir)
		}
	}
}

func startAndWaitForDeath(t *testing.T) {
	cluster := postgres.New(t)
	server := synapse.New(t, synapse.Config{Postgres: cluster})
	fmt.Println("dirs", cluster.Dir(), server.Dir())
	fmt.Println("pids", childrenOf(t, os.Getpid()))
	time.Sleep(time.Minute)
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(t *testing.T, pid int) string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		stat, _ := os.ReadFile("/proc/" + e.Name() + "/stat")
		_, after, found := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(after); found && len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			list = append(list, e.Name())
		}
	}
	return strings.Join(list, " ")
}

func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(stat), ") ")
	return err != nil || strings.HasPrefix(after, "Z")
}

func readChildren(t *testing.T, out io.Reader) (dirs []string, pids []int) {
	t.Helper()
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		switch {
		case len(fields) > 0 && fields[0] == "dirs":
			dirs = fields[1:]
		case len(fields) > 0 && fields[0] == "pids":
			for _, f := range fields[1:] {
				pid, err := strconv.Atoi(f)
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
			return dirs, pids
		}
	}
	t.Fatal("the child test started nothing")
	return nil, nil
}
