// Package config is the bridge's one YAML file: its example, which is also the default, its loading, and the
// registration that the homeserver reads.
//
// Loading is strict. Unknown keys and wrong values are all reported at once, each with its line ([Problems]), because an
// admin who mends one mistake per start has a bad morning.
package config

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"trunkline/bridge/command"
	"trunkline/bridge/number"
)

//go:embed example.yaml
var example []byte

// Example returns the documented default configuration.
func Example() []byte { return example }

// Config is the whole file. The example documents every field.
type Config struct {
	Homeserver Homeserver `yaml:"homeserver"`
	AppService AppService `yaml:"appservice"`
	Database   Database   `yaml:"database"`
	SIP        SIP        `yaml:"sip"`
	RTP        RTP        `yaml:"rtp"`
	WebRTC     WebRTC     `yaml:"webrtc"`
	Calls      Calls      `yaml:"calls"`
	Routes     []Route    `yaml:"routes"`
	DialIn     DialIn     `yaml:"dial_in"`
	Commands   Commands   `yaml:"commands"`
	Dialling   Dialling   `yaml:"dialling"`
	Admin      Admin      `yaml:"admin"`
	Log        Log        `yaml:"log"`

	Permissions command.Permissions `yaml:"permissions"`

	Folder string `yaml:"-"` // of the file; relative paths begin there
}

type Homeserver struct {
	Address string `yaml:"address"`
	Domain  string `yaml:"domain"`
}

type AppService struct {
	Registration string `yaml:"registration"`
	ID           string `yaml:"id"`
	Listen       string `yaml:"listen"`
	URL          string `yaml:"url"`
	Bot          string `yaml:"bot"`
	BotName      string `yaml:"bot_name"`
	GhostPrefix  string `yaml:"ghost_prefix"`
	GhostAvatar  string `yaml:"ghost_avatar"`
}

type Database struct {
	Address string `yaml:"address"`
	Node    string `yaml:"node"`
}

type SIP struct {
	Listen    []Listen `yaml:"listen"`
	TLS       TLS      `yaml:"tls"`
	Advertise string   `yaml:"advertise"`
	UserAgent string   `yaml:"user_agent"`
	Limits    Limits   `yaml:"limits"`
	Trunks    []Trunk  `yaml:"trunks"`
}

// Limits of what is taken from neighbours; 0 = none.
type Limits struct {
	InvitesPerSecond  int `yaml:"invites_per_second"`
	MessagesPerSecond int `yaml:"messages_per_second"`
	FailuresPerMinute int `yaml:"failures_per_minute"`
}

type Listen struct {
	Transport string `yaml:"transport"`
	Address   string `yaml:"address"`
}

// TLS names files in PEM.
type TLS struct {
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
}

type Trunk struct {
	Name          string   `yaml:"name"`
	Networks      []string `yaml:"networks"`
	Codecs        []string `yaml:"codecs"`
	SymmetricRTP  bool     `yaml:"symmetric_rtp"`
	MediaNetworks []string `yaml:"media_networks"`
	ShowNumbers   bool     `yaml:"show_numbers"`
	DTMF          string   `yaml:"dtmf"`
	Transfers     string   `yaml:"transfers"`
	Proxy         string   `yaml:"proxy"`
	Transport     string   `yaml:"transport"`
	Domain        string   `yaml:"domain"`
	Advertise     string   `yaml:"advertise"`
	AdvertiseRTP  string   `yaml:"advertise_rtp"`
	Username      string   `yaml:"username"`
	AuthUsername  string   `yaml:"auth_username"`
	Password      string   `yaml:"password"`
	MaxCalls      int      `yaml:"max_calls"`
	Direction     string   `yaml:"direction"`

	InvitesPerSecond int `yaml:"invites_per_second"`

	SRTP     string `yaml:"srtp"`
	TLS      TLS    `yaml:"tls"`
	ClientCA string `yaml:"client_ca"`

	CallerID      string `yaml:"caller_id"`
	AccountInFrom bool   `yaml:"account_in_from"`
	DisplayName   string `yaml:"display_name"`
	HideNumber    bool   `yaml:"hide_number"`

	Register    bool          `yaml:"register"`
	RegisterFor time.Duration `yaml:"register_for"`
	Ping        time.Duration `yaml:"ping"`

	IgnoreAssertedIdentity bool `yaml:"ignore_asserted_identity"`

	Numbers        number.Rules `yaml:"numbers"`
	Dials          []string     `yaml:"dials"`
	Extensions     []string     `yaml:"extensions"`
	Number         string       `yaml:"number"`
	CallsPerSecond int          `yaml:"calls_per_second"`
}

type RTP struct {
	Address   string `yaml:"address"`
	PortMin   int    `yaml:"port_min"`
	PortMax   int    `yaml:"port_max"`
	Advertise string `yaml:"advertise"`
}

type WebRTC struct {
	Port       int         `yaml:"port"`
	PortMin    int         `yaml:"port_min"`
	PortMax    int         `yaml:"port_max"`
	Interfaces []string    `yaml:"interfaces"`
	Addresses  []string    `yaml:"addresses"`
	Advertise  string      `yaml:"advertise"`
	Loopback   bool        `yaml:"loopback"`
	Servers    []ICEServer `yaml:"servers"`
}

type ICEServer struct {
	URIs     []string `yaml:"uris"`
	Username string   `yaml:"username"`
	Password string   `yaml:"password"`
}

// Which way calls go over a trunk; left out: both.
const (
	DirectionIn   = "in"
	DirectionOut  = "out"
	DirectionBoth = "both"
)

// What becomes of calls when the process is told to stop.
const (
	StopSuspends = "suspend"
	StopEnds     = "end"
)

type Calls struct {
	AllowPlain   bool          `yaml:"allow_plain"`
	MaxLegs      int           `yaml:"max_legs"`
	SetupTimeout time.Duration `yaml:"setup_timeout"`
	AloneTimeout time.Duration `yaml:"alone_timeout"`
	EmptyTimeout time.Duration `yaml:"empty_timeout"`
	Longest      time.Duration `yaml:"longest"`
	EntryLife    time.Duration `yaml:"entry_life"`
	KeepHistory  time.Duration `yaml:"keep_history"`
	OnStop       string        `yaml:"on_stop"`

	Options `yaml:",inline"`
}

type Route struct {
	Number string `yaml:"number"`
	Room   string `yaml:"room"`

	Options `yaml:",inline"`
}

// DialIn is what callers who are asked for a PIN need.
type DialIn struct {
	PINKey    string   `yaml:"pin_key"`
	PINDigits int      `yaml:"pin_digits"`
	Sounds    []string `yaml:"sounds"`
	RoomNames bool     `yaml:"room_names"`
}

type Admin struct {
	Listen string `yaml:"listen"`
}

type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Default is what the example says.
func Default() Config {
	var c Config
	if err := yaml.Unmarshal(example, &c); err != nil {
		panic(fmt.Sprintf("the embedded example config is broken: %v", err)) // a test loads it
	}
	return c
}

// Load reads the file at path on top of the defaults. Its error is a [Problems] when the file could be read.
func Load(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read config: %w", err)
	}
	c, err := Parse(path, text)
	if err == nil {
		err = c.leftBehind()
	}
	return c, err
}

// leftBehind is an error where a file that is made when it is missing is not in the folder of the config, but is where the bridge was
// started: there it was looked for once, and nobody wants a new one beside it.
func (c *Config) leftBehind() error {
	scheme, file, _ := strings.Cut(c.Database.Address, ":")
	if scheme != "sqlite" {
		file = ""
	}
	for _, there := range []string{file, c.DialIn.PINKey} {
		here, err := filepath.Rel(c.Folder, there)
		if there == "" || err != nil || strings.HasPrefix(here, "..") {
			continue
		}
		if _, err := os.Stat(there); err == nil {
			continue
		}
		if _, err := os.Stat(here); err == nil {
			absolute, _ := filepath.Abs(here)
			return fmt.Errorf("relative paths begin in the folder of the configuration, and %s is not there, but is at %s: move it, with the files beside it whose names begin like its own, or write its whole path", there, absolute)
		}
	}
	return nil
}

// locateFiles brings the paths of files that the config names into its folder.
func (c *Config) locateFiles() {
	if scheme, file, _ := strings.Cut(c.Database.Address, ":"); scheme == "sqlite" {
		c.Database.Address = scheme + ":" + c.within(file)
	}
	c.DialIn.PINKey = c.within(c.DialIn.PINKey)
	for i, folder := range c.DialIn.Sounds {
		c.DialIn.Sounds[i] = c.within(folder)
	}
	c.SIP.TLS = c.filesOf(c.SIP.TLS)
	for i := range c.SIP.Trunks {
		c.LocateFiles(&c.SIP.Trunks[i])
	}
}

// within is where a file lies that the config names: in the folder of the config, unless the path is absolute.
func (c *Config) within(path string) string {
	if path == "" || filepath.IsAbs(path) || strings.HasPrefix(path, ":") { // :memory: is no file
		return path
	}
	return filepath.Join(c.Folder, path)
}

func (c *Config) filesOf(t TLS) TLS {
	return TLS{Certificate: c.within(t.Certificate), Key: c.within(t.Key), CA: c.within(t.CA)}
}

// LocateFiles brings the paths that a trunk names into the folder of the config, unless they are absolute.
func (c *Config) LocateFiles(t *Trunk) {
	t.TLS, t.ClientCA = c.filesOf(t.TLS), c.within(t.ClientCA)
}
