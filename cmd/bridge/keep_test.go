package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"trunkline/bridge/config"
	"trunkline/bridge/doctor"
	"trunkline/internal/testbed/homeserver"
)

// asProgram, when set, makes this test binary the program.
const asProgram = "TRUNKLINE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// bridge -keep: the bridge dies, and is there again; it is restarted on request, and ends when asked.
func TestKeptBridge(t *testing.T) {
	hs := homeserver.StartLoopback(t, homeserver.Config{})
	path := inFolder(t, fmt.Sprintf(`
homeserver: {address: %q, domain: %s}
appservice: {listen: "127.0.0.1:%d", url: "http://127.0.0.1:%[3]d"}
sip: {listen: [{transport: udp, address: "127.0.0.1:%d"}]}
rtp: {address: 127.0.0.1}
admin: {listen: ""}
`, hs.URL(), hs.Domain(), freePort(t), freePort(t)))
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	registration := config.NewRegistration(cfg)
	if err := config.WriteRegistration(config.RegistrationPath(cfg, path), registration); err != nil {
		t.Fatal(err)
	}
	hs.AppService(registration, &http.Client{Timeout: time.Minute})
	var log bytes.Buffer
	keeper := exec.Command(os.Args[0], "-c", path, "-keep")
	keeper.Dir, keeper.Env = filepath.Dir(path), append(os.Environ(), asProgram+"=1")
	keeper.Stdout, keeper.Stderr = &log, &log
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- keeper.Wait() }()
	ended := false
	defer func() {
		if !ended {
			_ = keeper.Process.Kill()
			<-over
		}
		if t.Failed() {
			t.Logf("its log:\n%s", log.String())
		}
	}()
	await := func(what string, holds func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}
	before := 0
	isReady := func() bool {
		child := childOf(keeper.Process.Pid)
		return child != 0 && child != before && doctor.Healthy(t.Context(), cfg) == nil
	}
	await("the bridge", isReady)
	for what, end := range map[string]func(){
		"the next one after a kill":    func() { _ = syscall.Kill(before, syscall.SIGKILL) },
		"the next one after a restart": func() { _ = keeper.Process.Signal(syscall.SIGHUP) },
	} {
		before = childOf(keeper.Process.Pid)
		end()
		await(what, isReady)
	}
	before = childOf(keeper.Process.Pid)
	if err := keeper.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-over:
		ended = true
		if err != nil {
			t.Errorf("the end: %v, want exit code 0", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	if err := syscall.Kill(before, 0); err == nil {
		t.Error("the child outlives its parent")
	}
}

// childOf finds a process's child; 0 = none.
func childOf(parent int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		_, rest, _ := strings.Cut(string(text), ") ") // the name before may hold anything
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(parent) && f[0] != "Z" {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err == nil {
				return pid
			}
		}
	}
	return 0
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
