package bridge

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"trunkline/db"
	"trunkline/sip"
)

// vault seals the keys of encrypted calls, which must be in their rows, so that who reads the database, or a copy of it, can't listen to
// what was recorded on the way. Its own key is made of the registration, which all nodes have and no database.
type vault struct{ aead cipher.AEAD }

func newVault(secret string) (*vault, error) {
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, "trunkline: keys of stored dialogs", 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of stored dialogs: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive the key of stored dialogs: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive the key of stored dialogs: %w", err)
	}
	return &vault{aead}, nil
}

// storedDialog is a dialog as its row has it. Without keys it is the dialog itself, which is also how all were written once.
type storedDialog struct {
	sip.Dialog
	Sealed []byte `json:"sealed,omitempty"` // secrets
}

// secrets are what of a dialog holds keys.
type secrets struct {
	Crypto              sip.Crypto
	LocalSDP, RemoteSDP string
}

// dialog writes a dialog for the row of a leg, to which what is sealed is bound.
func (v *vault) dialog(leg string, d sip.Dialog) string {
	stored := storedDialog{Dialog: d}
	m := &stored.Media
	s := secrets{m.Crypto, m.LocalSDP, m.RemoteSDP}
	if s.Crypto.Local+s.Crypto.Remote != "" || strings.Contains(s.LocalSDP+s.RemoteSDP, "a=crypto:") {
		m.Crypto.Local, m.Crypto.Remote, m.LocalSDP, m.RemoteSDP = "", "", "", ""
		stored.Sealed = v.aead.Seal(nil, nil, []byte(encode(s)), []byte(leg))
	}
	return encode(stored)
}

// errSealed says that keys were sealed by another registration.
var errSealed = errors.New("the keys of its sound can't be opened: the registration's token is another one by now")

// dialogOf rebuilds the dialog of a stored leg. With [errSealed] all but its keys is there: enough to hang up.
func (v *vault) dialogOf(l db.Leg) (sip.Dialog, error) {
	var stored storedDialog
	if err := json.Unmarshal([]byte(l.Dialog), &stored); err != nil {
		return sip.Dialog{}, fmt.Errorf("read dialog of leg %s: %w", l.ID, err)
	}
	if len(stored.Sealed) == 0 {
		return stored.Dialog, nil
	}
	text, err := v.aead.Open(nil, nil, stored.Sealed, []byte(l.ID))
	if err != nil {
		return stored.Dialog, fmt.Errorf("read dialog of leg %s: %w", l.ID, errSealed)
	}
	var s secrets
	if err := json.Unmarshal(text, &s); err != nil {
		return sip.Dialog{}, fmt.Errorf("read dialog of leg %s: %w", l.ID, err)
	}
	m := &stored.Media
	m.Crypto, m.LocalSDP, m.RemoteSDP = s.Crypto, s.LocalSDP, s.RemoteSDP
	return stored.Dialog, nil
}
