package bridge

import (
	"errors"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"trunkline/bridge/config"
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

// storedLeg is a column of the only leg, as the database has it.
func (b *bed) storedLeg(column string) (text string) {
	b.t.Helper()
	s, err := db.Open(b.t.Context(), b.cfg.Database.Address, b.log)
	if err != nil {
		b.t.Fatal(err)
	}
	defer s.Close()
	if err := s.Shared().QueryRow(b.ctx(), "SELECT "+column+" FROM leg").Scan(&text); err != nil {
		b.t.Fatal(err)
	}
	return text
}

// awaitStored waits until a column of the only leg names something: a process that is killed before leaves no word of it.
func (b *bed) awaitStored(column, what string) {
	b.t.Helper()
	b.await("the row to name "+what, func() bool { return strings.Contains(b.storedLeg(column), what) })
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

// A password is found again by the same registration and for the same trunk only, and what is written has it nowhere in clear.
func TestPasswordOfAStoredTrunkIsSealed(t *testing.T) {
	const password = `horse"<7>`
	settings := `{"networks":["192.0.2.0/24"],"password":` + encode(password) + `,"username":"u"}`
	v := vaultOf(t, "token")
	sealed, err := v.sealTrunk("office", settings)
	if err != nil || strings.Contains(sealed, "horse") || !strings.Contains(sealed, `"username":"u"`) || !strings.Contains(sealed, `"sealed_password":`) {
		t.Fatalf("sealTrunk = %s, %v", sealed, err)
	}
	if again, err := v.sealTrunk("office", sealed); again != sealed || err != nil {
		t.Errorf("sealed once more: %s, %v", again, err)
	}
	if other, _ := v.sealTrunk("office", settings); other == sealed {
		t.Error("two writes of the same password are the same: the nonce is not used once")
	}
	newer := strings.Replace(sealed, "{", `{"password":"newer",`, 1)
	for name, c := range map[string]struct {
		vault           *vault
		trunk, settings string
		password        string
		err             error
	}{
		"as it was":              {v, "office", sealed, password, nil},
		"in clear":               {v, "office", settings, password, nil},
		"with a newer one":       {v, "office", newer, "newer", nil},
		"without one":            {v, "office", `{"networks":["192.0.2.0/24"],"username":"u"}`, "", nil},
		"another trunk's":        {v, "home", sealed, "", errPassword},
		"another registration's": {vaultOf(t, "another"), "office", sealed, "", errPassword},
		"no seal":                {v, "office", `{"networks":["192.0.2.0/24"],"username":"u","sealed_password":7}`, "", errPassword},
		"cut off":                {v, "office", `{"networks":["192.0.2.0/24"],"username":"u","sealed_password":"AAAA"}`, "", errPassword},
	} {
		text, err := c.vault.openTrunk(c.trunk, c.settings)
		trunk, unread := config.ParseTrunk(c.trunk, text, config.SIP{})
		if !errors.Is(err, c.err) || unread != nil || trunk.Password != c.password || trunk.Username != "u" {
			t.Errorf("%s: openTrunk = %s, %v; read as %q of %q, %v; want %q, %v", name, text, err, trunk.Password, trunk.Username, unread, c.password, c.err)
		}
	}
	if both, err := v.sealTrunk("office", newer); err != nil || strings.Contains(both, "newer") {
		t.Errorf("a newer password is sealed as %s, %v", both, err)
	} else if text, _ := v.openTrunk("office", both); !strings.Contains(text, `"password":"newer"`) {
		t.Errorf("a newer password became %s", text)
	}
	if text, err := v.sealTrunk("office", "networks: []\npassword: secret"); err == nil {
		t.Errorf("what is no JSON object became %s", text)
	}
}

// storedSettings are those of a trunk, as the database has them.
func (b *bed) storedSettings(trunk string) string {
	b.t.Helper()
	stored, err := b.process.bridge.store.Trunks(b.ctx())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, row := range stored {
		if row.Name == trunk {
			return row.Settings
		}
	}
	b.t.Fatalf("no trunk %s is stored", trunk)
	return ""
}

// One trunk is stored by an admin, one stands there in clear from the version before: both are registered with, and neither password can be read.
func TestTrunksAreRegisteredWithBySealedPasswords(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	const password = "correct-horse"
	p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), Password: password})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	settings := `{"proxy": "` + p.Addr().String() + `", "register": true, "username": "trunkline", "password": "` + password + `"}`
	if code, answer := b.admin("PUT", "/trunks/office", settings); code != http.StatusOK {
		t.Fatalf("PUT = %d, %s", code, answer)
	}
	before := db.Trunk{Name: "before", Settings: strings.Replace(settings, "trunkline", "before", 1)}
	if err := b.process.bridge.store.PutTrunk(b.ctx(), before); err != nil {
		t.Fatal(err)
	}
	if text := b.storedSettings("office"); strings.Contains(text, password) {
		t.Errorf("an admin's trunk is stored as %s", text)
	}
	for range 2 { // what the first start has sealed the second one reads
		b.stop()
		b.start()
		b.await("trunks to be registered", func() bool {
			return b.counts(`trunkline_sip_trunk_registered{trunk="office"} 1`) && b.counts(`trunkline_sip_trunk_registered{trunk="before"} 1`)
		})
		for _, name := range []string{"office", "before"} {
			if text := b.storedSettings(name); strings.Contains(text, password) || !strings.Contains(text, `"sealed_password":`) {
				t.Errorf("trunk %s is stored as %s", name, text)
			}
		}
	}
	if _, list := b.admin("GET", "/trunks", ""); strings.Contains(list, password) || strings.Contains(list, "sealed") {
		t.Errorf("GET /trunks = %s", list)
	}
	if code, _ := b.admin("PUT", "/trunks/office", b.storedSettings("before")); code != http.StatusBadRequest {
		t.Errorf("a sealed password was taken from an admin: %d", code)
	}
	if strings.Contains(b.said.String(), password) {
		t.Error("the password is in the log")
	}
}

// Whoever has the tokens of the registration replaced loses these trunks only, until they are stored again or the tokens are back.
func TestTrunkWhosePasswordCantBeOpenedIsOut(t *testing.T) {
	store, err := db.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "t.db"), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var cfg config.Config
	cfg.RTP.Address = "127.0.0.1"
	cfg.SIP.Trunks = []config.Trunk{{Name: "carrier"}}
	for name, settings := range map[string]string{
		"account": `{"networks": ["192.0.2.0/24"], "username": "u", "password": "secret"}`,
		"open":    `{"networks": ["192.0.2.0/24"]}`,
	} {
		if err := store.PutTrunk(t.Context(), db.Trunk{Name: name, Settings: settings}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		token string
		used  []string
	}{
		{"token", []string{"carrier", "account", "open"}}, // seals
		{"another", []string{"carrier", "open"}},
		{"token", []string{"carrier", "account", "open"}},
	} {
		problems := map[string]error{}
		got, err := withStoredTrunks(t.Context(), cfg, store, vaultOf(t, c.token), func(name string, err error) { problems[name] = err })
		if err != nil {
			t.Fatal(err)
		}
		var used []string
		for _, trunk := range got.SIP.Trunks {
			used = append(used, trunk.Name)
		}
		out := len(c.used) < 3
		if !slices.Equal(used, c.used) || (len(problems) > 0) != out || out && !errors.Is(problems["account"], errPassword) {
			t.Errorf("with %q: used %v, problems %v; want %v", c.token, used, problems, c.used)
		}
		if trunk := got.SIP.Trunks[1]; !out && trunk.Password != "secret" {
			t.Errorf("with %q the password is %q", c.token, trunk.Password)
		}
	}
}

// A row that the database does not let be changed keeps nobody from their calls: the trunk is used with its password in clear.
func TestTrunkWhosePasswordCantBeSealedIsUsed(t *testing.T) {
	store, err := db.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "t.db"), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	row := db.Trunk{Name: "account", Settings: `{"networks": ["192.0.2.0/24"], "username": "u", "password": "secret"}`}
	if err := store.PutTrunk(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	_, err = store.Shared().Exec(t.Context(), "CREATE TRIGGER kept BEFORE UPDATE ON trunk BEGIN SELECT RAISE(ABORT, 'kept as it is'); END")
	if err != nil {
		t.Fatal(err)
	}
	var cfg config.Config
	cfg.RTP.Address = "127.0.0.1"
	var complaints []string
	got, err := withStoredTrunks(t.Context(), cfg, store, vaultOf(t, "token"), func(name string, err error) {
		complaints = append(complaints, name+": "+err.Error())
	})
	if err != nil {
		t.Fatal(err)
	}
	if used := got.SIP.Trunks; len(used) != 1 || used[0].Password != "secret" {
		t.Errorf("used %d trunks, want the one with its password", len(used))
	}
	if len(complaints) != 1 || !strings.Contains(complaints[0], "kept as it is") || strings.Contains(complaints[0], "secret") {
		t.Errorf("complaints: %q, want one of what the database says", complaints)
	}
}
