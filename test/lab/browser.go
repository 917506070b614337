package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/chromedp/chromedp"
)

// browser is one headless Chromium; every client gets a context of its own in it, as private as another browser.
type browser struct {
	ctx    context.Context // of the browser's first tab; parent of all clients
	script string          // lab.js
}

// startBrowser starts Chromium.
func (l *Lab) startBrowser() error {
	script, err := os.ReadFile(filepath.Join(l.root, "test", "lab", "pages", "dist", "lab.js"))
	if err != nil {
		return err
	}
	path, err := findChromium()
	if err != nil {
		return err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.NoSandbox,
		chromedp.Env("TMPDIR="+l.dir),
		chromedp.UserDataDir(filepath.Join(l.dir, "chromium")),
		// js-sdk asks enumerateDevices first and joins muted, for ever connecting, if no microphone is listed.
		// Five pictures a second are enough for a camera that nobody looks at.
		chromedp.Flag("use-fake-device-for-media-stream", "fps=5"),
		// Gives the microphone permission, which the loopback flag needs, too.
		chromedp.Flag("use-fake-ui-for-media-stream", true),
		chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		// Candidates on 127.0.0.1: the lab works on a machine without a network card.
		chromedp.Flag("allow-loopback-in-peer-connection", true),
		chromedp.Flag("disable-features", "Translate,BlinkGenPropertyTrees,WebRtcHideLocalIpsWithMdns"),
	)
	// The browser lives as long as the lab, not as long as the context of the one who started it.
	alloc, stopAlloc := chromedp.NewExecAllocator(context.Background(), options...)
	first, stopFirst := chromedp.NewContext(alloc)
	l.own("Chromium", func() error { stopFirst(); stopAlloc(); return nil })
	began := time.Now()
	if err := chromedp.Do(first, chromedp.Navigate("about:blank")); err != nil {
		return fmt.Errorf("start Chromium (%s): %w", path, err)
	}
	l.say("Chromium: started in %d ms; pages at %s", time.Since(began).Milliseconds(), l.pages.url)
	l.browser = &browser{ctx: first, script: string(script)}
	return nil
}

func findChromium() (string, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("chromium is not installed (scripts/install-lab.sh installs it)")
}
