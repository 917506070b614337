package bridge

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"trunkline/db"
	"trunkline/internal/testbed/phone"
	"trunkline/sip"
)

func vaultOf(t *testing.T, secret string) *vault {
	t.Helper()
	v, err := newVault(secret)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestKeysOfACallAreSealedInItsRow(t *testing.T) {
	const key = "WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz"
	with := func(edit func(*sip.MediaState)) sip.Dialog {
		d := sip.Dialog{CallID: "c", LocalTag: "l", RemoteTarget: "sip:phone@192.0.2.1", RouteSet: []string{"<sip:edge.example>"}}
		d.Media = sip.MediaState{Local: netip.MustParseAddrPort("127.0.0.1:20000"), LocalSDP: "v=0 ours", RemoteSDP: "v=0 theirs", SDPVersion: 7}
		edit(&d.Media)
		return d
	}
	for name, c := range map[string]struct {
		dialog sip.Dialog
		sealed bool
	}{
		"plain": {with(func(*sip.MediaState) {}), false},
		"encrypted": {with(func(m *sip.MediaState) {
			m.Crypto = sip.Crypto{Suite: "AES_CM_128_HMAC_SHA1_80", Tag: 1, Local: key, Remote: key}
		}), true},
		"offered": {with(func(m *sip.MediaState) { m.LocalSDP = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + key }), true},
		"refused": {with(func(m *sip.MediaState) { m.RemoteSDP = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + key }), true},
	} {
		t.Run(name, func(t *testing.T) {
			v := vaultOf(t, "token")
			text := v.dialog("leg-1", c.dialog)
			if strings.Contains(text, key) || strings.Contains(text, `"sealed"`) != c.sealed {
				t.Errorf("stored as %s, want it sealed: %t", text, c.sealed)
			}
			row := db.Leg{ID: "leg-1", Dialog: text}
			got, err := v.dialogOf(row)
			if diff := cmp.Diff(c.dialog, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || err != nil {
				t.Errorf("comes back otherwise, %v (-want +got):\n%s", err, diff)
			}
			if !c.sealed {
				return
			}
			if again := v.dialog("leg-1", c.dialog); again == text {
				t.Error("two writes of the same keys are the same: the nonce is not used once")
			}
			for whose, read := range map[string]func() (sip.Dialog, error){
				"row":          func() (sip.Dialog, error) { return v.dialogOf(db.Leg{ID: "leg-2", Dialog: text}) },
				"registration": func() (sip.Dialog, error) { return vaultOf(t, "another").dialogOf(row) },
			} {
				if got, err := read(); !errors.Is(err, errSealed) || got.CallID != "c" || got.RemoteTarget == "" || len(got.RouteSet) != 1 {
					t.Errorf("of another %s: %+v, %v, want what it takes to hang up, and %v", whose, got, err, errSealed)
				}
			}
		})
	}
}

func TestRowsOfBeforeTheSealAreRead(t *testing.T) {
	d := sip.Dialog{CallID: "c"}
	d.Media.Crypto = sip.Crypto{Suite: "AES_CM_128_HMAC_SHA1_80", Tag: 1, Local: "ours", Remote: "theirs"}
	got, err := vaultOf(t, "token").dialogOf(db.Leg{ID: "leg-1", Dialog: encode(d)})
	if err != nil || got.Media.Crypto != d.Media.Crypto {
		t.Errorf("dialogOf = %+v, %v", got.Media.Crypto, err)
	}
}

// storedDialog is the dialog of the only leg, as the database has it.
func (b *bed) storedDialog() (text string) {
	b.t.Helper()
	s, err := db.Open(b.t.Context(), b.cfg.Database.Address, b.log)
	if err != nil {
		b.t.Fatal(err)
	}
	defer s.Close()
	if err := s.Shared().QueryRow(b.ctx(), "SELECT dialog FROM leg").Scan(&text); err != nil {
		b.t.Fatal(err)
	}
	return text
}

// ourKey is the bridge's, as its description has told it to a phone.
func ourKey(t *testing.T, call *phone.Call) string {
	t.Helper()
	_, key, found := strings.Cut(call.Answer(), "inline:")
	if !found || len(key) < 40 {
		t.Fatalf("no key in %q", call.Answer())
	}
	return key[:40] // 30 octets in base64
}

// Whoever has the tokens of the registration replaced loses the sound of encrypted calls, but nobody is left in one.
func TestEncryptedCallEndsWhenItsKeysCantBeOpened(t *testing.T) {
	t.Parallel()
	b, doomed, _, w := secretBed(t)
	kill(t, doomed)
	b.startWith(func(made *Bridge) { made.vault = vaultOf(t, "another registration") })
	<-w.call.Done()
	b.clear()
	if why := w.call.Ended(); !strings.Contains(why, "could not be resumed") {
		t.Errorf("the phone was ended by %q", why)
	}
}
