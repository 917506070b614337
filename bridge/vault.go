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

// vault seals what must be in rows and is a secret, so that who reads the database, or a copy of it, can't listen to encrypted calls that
// were recorded on the way, nor call at our cost. Its own keys are made of the registration, which all nodes have and no database.
type vault struct{ dialogs, trunks cipher.AEAD }

func newVault(secret string) (*vault, error) {
	dialogs, err := derive(secret, "keys of stored dialogs")
	if err != nil {
		return nil, err
	}
	trunks, err := derive(secret, "passwords of stored trunks")
	return &vault{dialogs, trunks}, err
}

// derive makes what seals one kind of secrets.
func derive(secret, purpose string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, "trunkline: "+purpose, 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of %s: %w", purpose, err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive the key of %s: %w", purpose, err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("derive the key of %s: %w", purpose, err)
	}
	return aead, nil
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
		stored.Sealed = v.dialogs.Seal(nil, nil, []byte(encode(s)), []byte(leg))
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
	text, err := v.dialogs.Open(nil, nil, stored.Sealed, []byte(l.ID))
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

// Of a stored trunk's settings one is a secret. Its row has the other instead, which no trunk of the config can have.
const (
	clearPassword  = "password"
	sealedPassword = "sealed_password"
)

// errPassword says that a password was sealed by another registration, or for another trunk.
var errPassword = errors.New("its password can't be opened: the registration's token is another one by now, or it was sealed for a trunk of another name; " +
	"store the trunk again, with its password")

// sealTrunk is a stored trunk's settings without a password in clear. A password that somebody has put in beside a sealed one is the newer.
func (v *vault) sealTrunk(name, settings string) (string, error) {
	options, err := optionsOf(settings)
	if err != nil {
		return "", err
	}
	password, clear := options[clearPassword]
	if !clear {
		return settings, nil
	}
	delete(options, clearPassword)
	options[sealedPassword] = json.RawMessage(encode(v.trunks.Seal(nil, nil, password, []byte(name))))
	return encode(options), nil
}

// openTrunk undoes sealTrunk. With [errPassword] the settings are all but the password.
func (v *vault) openTrunk(name, settings string) (string, error) {
	options, err := optionsOf(settings)
	if err != nil {
		return settings, nil // who reads it next says what is wrong
	}
	stored, sealed := options[sealedPassword]
	if !sealed {
		return settings, nil
	}
	delete(options, sealedPassword)
	if options[clearPassword] != nil {
		return encode(options), nil
	}
	var box []byte
	if err := json.Unmarshal(stored, &box); err != nil {
		return encode(options), errPassword
	}
	password, err := v.trunks.Open(nil, nil, box, []byte(name))
	if err != nil {
		return encode(options), errPassword
	}
	options[clearPassword] = password
	return encode(options), nil
}

// optionsOf reads a trunk's settings as far as is needed to find a password.
func optionsOf(settings string) (options map[string]json.RawMessage, err error) {
	if err := json.Unmarshal([]byte(settings), &options); err != nil {
		return nil, fmt.Errorf("read the settings of a trunk: %w", err)
	}
	return options, nil
}
