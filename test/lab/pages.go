package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// pageServer serves the bundled clients and the speech files to browsers of this machine.
type pageServer struct {
	url    string
	server *http.Server
	done   chan struct{}
}

// servePages builds the pages if they have changed and serves them.
func (l *Lab) servePages(ctx context.Context) (*pageServer, error) {
	install := exec.CommandContext(ctx, filepath.Join(l.root, "scripts", "install-lab.sh"), "pages")
	install.Stdout, install.Stderr = l.opts.Progress, os.Stderr
	if err := install.Run(); err != nil {
		return nil, fmt.Errorf("build the pages: %w", err)
	}
	port, err := l.port(pagesPort)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, fmt.Errorf("serve the pages: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(filepath.Join(l.root, "test", "lab", "pages", "dist"))))
	mux.Handle("/speech/", http.StripPrefix("/speech/", http.FileServer(http.Dir(filepath.Join(l.dir, "speech")))))
	mux.HandleFunc("/app.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"homeserver": l.Homeserver()})
	})
	s := &pageServer{
		// "localhost", not the number: both are secure origins, but people know the name.
		url:    fmt.Sprintf("http://localhost:%d", listener.Addr().(*net.TCPAddr).Port),
		server: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second},
		done:   make(chan struct{}),
	}
	go func() { _ = s.server.Serve(listener); close(s.done) }()
	l.own("pages", s.close)
	return s, nil
}

func (s *pageServer) close() error {
	err := s.server.Close()
	<-s.done
	return err
}

// App returns the address of the whole hydrogen application, for a person's browser.
func (l *Lab) App() string { return l.pages.url + "/app.html" }
