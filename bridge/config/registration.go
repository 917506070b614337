package config

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix/appservice"
)

// NewRegistration makes the registration that fits the config, with fresh tokens. The sender is a random localpart, not
// the bot: Synapse treats the sender user specially in ways that trip encryption.
func NewRegistration(c Config) *appservice.Registration {
	notLimited := false
	return &appservice.Registration{
		ID:                  c.AppService.ID,
		URL:                 c.AppService.URL,
		AppToken:            rand.Text() + rand.Text(),
		ServerToken:         rand.Text() + rand.Text(),
		SenderLocalpart:     strings.ToLower(rand.Text()),
		RateLimited:         &notLimited,
		EphemeralEvents:     true,
		SoruEphemeralEvents: true,
		MSC3202:             true,
		MSC4190:             true,
		Namespaces:          appservice.Namespaces{UserIDs: namespaces(c)},
	}
}

// namespaces are anchored on both ends, because homeservers match prefixes.
func namespaces(c Config) appservice.NamespaceList {
	domain := regexp.QuoteMeta(c.Homeserver.Domain)
	return appservice.NamespaceList{
		{Regex: "^@" + regexp.QuoteMeta(c.AppService.Bot) + ":" + domain + "$", Exclusive: true},
		{Regex: "^@" + regexp.QuoteMeta(c.AppService.GhostPrefix) + ".*:" + domain + "$", Exclusive: true},
	}
}

// WriteRegistration writes it readable by the owner only, and never over an existing file: its tokens are in use.
func WriteRegistration(path string, r *appservice.Registration) error {
	text, err := yaml.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode registration: %w", err)
	}
	return writeNew(path, text)
}

// writeNew creates the file at path with mode 0600; an existing file is an error.
func writeNew(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already and is not overwritten; remove it first if you mean to", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// LoadRegistration reads the file that the config names, relative to the folder of the config file.
func LoadRegistration(c Config, configPath string) (*appservice.Registration, error) {
	path := RegistrationPath(c, configPath)
	r, err := appservice.LoadRegistration(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no registration at %s; make it with `bridge -g` and give it to the homeserver", path)
	}
	if _, unread := errors.AsType[*fs.PathError](err); unread {
		return nil, fmt.Errorf("read registration: %w", err)
	}
	if err != nil { // what a decoder says may have a token in it
		return nil, fmt.Errorf("%s is not a registration, that is, a group of options in YAML, with id, as_token and hs_token among them; make a new one with `bridge -g`", path)
	}
	if isSample(r) {
		return nil, fmt.Errorf("%s is the sample from the source tree, whose tokens everybody knows; make your own with `bridge -g` in a folder of your own", path)
	}
	if r.AppToken == "" || r.ServerToken == "" {
		return nil, fmt.Errorf("%s has no as_token or hs_token; make a new one with `bridge -g`", path)
	}
	return r, nil
}

// isSample recognises the registration.yaml of the source tree.
func isSample(r *appservice.Registration) bool {
	return strings.HasPrefix(r.AppToken, "PLACEHOLDER") || strings.HasPrefix(r.ServerToken, "PLACEHOLDER")
}

// RegistrationPath is where the registration of the config at configPath lies.
func RegistrationPath(c Config, configPath string) string {
	if filepath.IsAbs(c.AppService.Registration) {
		return c.AppService.Registration
	}
	return filepath.Join(filepath.Dir(configPath), c.AppService.Registration)
}

// Differences says, in words for an admin, where a registration no longer fits the config.
func Differences(c Config, r *appservice.Registration) []string {
	var list []string
	differ := func(what string, have, want any) {
		if have != want {
			list = append(list, fmt.Sprintf("%s is %q in the registration, and %q in the config", what, have, want))
		}
	}
	differ("id", r.ID, c.AppService.ID)
	differ("url", r.URL, c.AppService.URL)
	for _, want := range namespaces(c) {
		if !slices.ContainsFunc(r.Namespaces.UserIDs, func(n appservice.Namespace) bool { return n.Regex == want.Regex }) {
			list = append(list, fmt.Sprintf("the registration lacks the user namespace %s", want.Regex))
		}
	}
	if r.RateLimited == nil || *r.RateLimited {
		list = append(list, "rate_limited is not false: the homeserver will slow calls down")
	}
	return list
}
