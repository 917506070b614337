package sip

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
)

// SRTPMode says whether the sound of a trunk is encrypted. Keys travel in SDP (SDES, RFC 4568), so that they are worth
// nothing unless the signalling is TLS; without it, they are neither offered nor taken.
type SRTPMode string

// The ways of [Trunk.SRTP].
const (
	SRTPOff      SRTPMode = ""
	SRTPOptional SRTPMode = "optional" // if the phone has it: RTP/SAVP, or RTP/AVP with a=crypto
	SRTPRequired SRTPMode = "required" // else the call is refused
)

// Crypto is how the sound of a call is encrypted; the zero value is plain RTP. It holds keys: keep it out of logs.
type Crypto struct {
	Suite  string `json:"suite,omitempty"`
	Tag    int    `json:"tag,omitempty"`
	Local  string `json:"local,omitempty"`  // our master key and salt, base64
	Remote string `json:"remote,omitempty"` // the phone's
}

// String keeps keys out of logs.
func (c Crypto) String() string { return c.Suite }

// on says that there is encryption.
func (c Crypto) on() bool { return c.Suite != "" }

// suites we speak, by preference (RFC 4568 §6.2).
var suites = []struct {
	name    string
	profile srtp.ProtectionProfile
}{
	{"AES_CM_128_HMAC_SHA1_80", srtp.ProtectionProfileAes128CmHmacSha1_80},
	{"AES_CM_128_HMAC_SHA1_32", srtp.ProtectionProfileAes128CmHmacSha1_32},
}

const (
	masterKey  = 16
	masterSalt = 14
)

func suiteNamed(name string) int {
	for i, s := range suites {
		if strings.EqualFold(s.name, name) {
			return i
		}
	}
	return -1
}

// newKeys makes a key for each suite.
func newKeys() []string {
	keys := make([]string, len(suites))
	var b [masterKey + masterSalt]byte
	for i := range keys {
		_, _ = rand.Read(b[:]) // it never fails
		keys[i] = base64.StdEncoding.EncodeToString(b[:])
	}
	return keys
}

// cryptoOf takes the first a=crypto of a media line that we can use. Lines with an MKI or with session parameters ask for
// more than we have, and must be passed over (RFC 4568 §6.3).
func cryptoOf(m *MediaLine, keys []string) Crypto {
	for _, a := range m.Attrs {
		if !strings.EqualFold(a.Key, "crypto") {
			continue
		}
		f := strings.Fields(a.Value)
		if len(f) != 3 {
			continue
		}
		tag, err := strconv.ParseUint(f[0], 10, 30)
		suite := suiteNamed(f[1])
		inline, ok := strings.CutPrefix(f[2], "inline:")
		key, rest, _ := strings.Cut(inline, "|")
		if err != nil || suite < 0 || suite >= len(keys) || !ok || strings.Contains(rest, ":") {
			continue
		}
		if b, err := base64.StdEncoding.DecodeString(key); err != nil || len(b) != masterKey+masterSalt {
			continue
		}
		return Crypto{Suite: suites[suite].name, Tag: int(tag), Local: keys[suite], Remote: key}
	}
	return Crypto{}
}

func writeCrypto(b *strings.Builder, tag int, suite, key string) {
	fmt.Fprintf(b, "a=crypto:%d %s inline:%s\r\n", tag, suite, key)
}

// protection is SRTP both ways. Its zero value lets everything through as it is. The media's lock guards it.
type protection struct {
	crypto  Crypto
	out, in *srtp.Context
	header  rtp.Header // for the library, so that no packet costs an allocation
	// rollovers is how often the phone's sequence numbers may have come round before we (re)opened the media. The count
	// is in no packet (RFC 3711 §3.3.1), so each number is tried until a packet is authentic.
	rollovers uint32
	tries     int // packets for which that is still worth it
}

// maxRolloverTries is how many packets may cost a search for the rollover counter: the phone's first ones, and some strangers'.
const maxRolloverTries = 64

// use takes newly agreed keys. Contexts whose keys did not change go on: their counters must.
func (p *protection) use(c Crypto) error {
	if c == p.crypto {
		return nil
	}
	old := p.crypto
	p.crypto = c
	if !c.on() {
		p.out, p.in = nil, nil
		return nil
	}
	if p.out == nil || old.Suite != c.Suite || old.Local != c.Local {
		ctx, err := newContext(c.Suite, c.Local)
		if err != nil {
			return err
		}
		p.out = ctx
	}
	if p.in == nil || old.Suite != c.Suite || old.Remote != c.Remote {
		ctx, err := newContext(c.Suite, c.Remote)
		if err != nil {
			return err
		}
		p.in = ctx
	}
	return nil
}

func newContext(suite, key string) (*srtp.Context, error) {
	i := suiteNamed(suite)
	b, err := base64.StdEncoding.DecodeString(key)
	if err != nil || i < 0 || len(b) != masterKey+masterSalt {
		return nil, fmt.Errorf("srtp: unusable key for suite %q", clip(suite))
	}
	return srtp.CreateContext(b[:masterKey], b[masterKey:], suites[i].profile,
		srtp.SRTPReplayProtection(64), srtp.SRTCPReplayProtection(64))
}

// seal encrypts the RTP packet at the beginning of buf, in place.
func (p *protection) seal(buf []byte, n int) ([]byte, error) {
	if p.out == nil {
		return buf[:n], nil
	}
	return p.out.EncryptRTP(buf, buf[:n], &p.header)
}

// open decrypts an RTP packet in place; false means that it is not the phone's.
func (p *protection) open(b []byte) ([]byte, bool) {
	if p.in == nil {
		return b, true
	}
	plain, err := p.in.DecryptRTP(b, b, &p.header)
	if err == nil {
		p.tries = 0
		return plain, true
	}
	if p.tries == 0 {
		return nil, false
	}
	p.tries--
	for roc := uint32(1); roc <= p.rollovers; roc++ {
		ctx, err := newContext(p.crypto.Suite, p.crypto.Remote)
		if err != nil {
			return nil, false
		}
		ctx.SetROC(p.header.SSRC, roc)
		if plain, err := ctx.DecryptRTP(b, b, &p.header); err == nil {
			p.in, p.tries = ctx, 0
			return plain, true
		}
	}
	return nil, false
}

func (p *protection) sealRTCP(b []byte) ([]byte, error) {
	if p.out == nil {
		return b, nil
	}
	return p.out.EncryptRTCP(nil, b, nil)
}

func (p *protection) openRTCP(b []byte) ([]byte, bool) {
	if p.in == nil {
		return b, true
	}
	plain, err := p.in.DecryptRTCP(nil, b, nil)
	return plain, err == nil
}
