// Package pin keeps PINs of rooms safe: how they are made, what of them is stored, how they are compared, and how often
// somebody may guess.
//
// A PIN is short, so a plain hash of it is the PIN to anybody who can count to a million. What is stored is therefore an
// HMAC under a key that lies outside the database ([LoadKey]); who steals the database without the key learns nothing.
//
// Guessing is limited by a [Budget], over calls: a menu limits the tries of one call, the budget those of one number, one
// trunk, and all together. The caller's loop:
//
//	if !budget.Take(now, trunk, number) {
//		return wrong // whatever was typed
//	}
//	if key.Matches(stored, scope, typed) { // stored is nil for an unknown room: it takes the same time
//		budget.Right(now, trunk, number)
//	}
package pin

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
)

// Least is the shortest PIN that may be set. At the default rates one number tries 144 of a million a day, all numbers of a
// trunk 1,440. Where the PIN alone picks one of many rooms, each room makes a hit likelier: use 9 digits there.
const Least = 6

// Longest is what a phone's menu takes.
const Longest = 16

const keySize = 32

// Key makes PINs unreadable. It does not show itself.
type Key struct{ secret [keySize]byte }

func (Key) String() string   { return "pin.Key" }
func (Key) GoString() string { return "pin.Key" }

// ParseKey reads a key as LoadKey writes it.
func ParseKey(text string) (Key, error) {
	raw, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil || len(raw) != keySize {
		return Key{}, fmt.Errorf("not a key of %d hexadecimal digits", 2*keySize) // err would quote the key
	}
	return Key{[keySize]byte(raw)}, nil
}

// LoadKey reads the key file, or makes a new one that only its owner may read. Losing it makes all stored PINs useless.
func LoadKey(path string) (Key, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(path); err != nil {
			return Key{}, fmt.Errorf("make key for PINs: %w", err)
		}
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return Key{}, fmt.Errorf("read key for PINs: %w", err)
	}
	key, err := ParseKey(string(text))
	if err != nil {
		return Key{}, fmt.Errorf("read key for PINs from %s: %w", path, err)
	}
	return key, nil
}

// makeKey puts a whole file in place at once, and leaves alone what another process put there meanwhile.
func makeKey(path string) error {
	var secret [keySize]byte
	rand.Read(secret[:])
	file, err := os.CreateTemp(filepath.Dir(path), ".pin-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = fmt.Fprintf(file, "%x\n", secret)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Sum is what to store of a PIN. The scope says where it counts: a room id, or the dial-in number if the PIN alone picks
// the room; the same PIN has another sum in another scope.
func (k Key) Sum(scope, pin string) []byte {
	mac := hmac.New(sha256.New, k.secret[:])
	fmt.Fprintf(mac, "trunkline pin 1\x00%d\x00%s\x00%s", len(scope), scope, pin)
	return mac.Sum(nil)
}

// Matches compares in constant time. A nil stored sum matches nothing, after the same work.
func (k Key) Matches(stored []byte, scope, pin string) bool {
	known := len(stored) == sha256.Size
	if !known {
		stored = make([]byte, sha256.Size)
	}
	return hmac.Equal(stored, k.Sum(scope, pin)) && known
}

// New is a random PIN that nobody guesses first.
func New(digits int) string {
	digits = min(max(digits, Least), Longest)
	limit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(digits)), nil)
	for {
		n, err := rand.Int(rand.Reader, limit)
		if err != nil {
			panic(err) // crypto/rand does not fail
		}
		if pin := fmt.Sprintf("%0*d", digits, n); Check(pin) == nil {
			return pin
		}
	}
}

// Check says, in words for who sets a PIN, what is wrong with it.
func Check(pin string) error {
	switch {
	case len(pin) < Least || len(pin) > Longest || strings.Trim(pin, "0123456789") != "":
		return fmt.Errorf("a PIN has %d to %d digits", Least, Longest)
	case guessedFirst(pin):
		return errors.New("this PIN is guessed too easily: a repetition or a row of digits")
	}
	return nil
}

// guessedFirst finds 111111, 123123, 121212, 123456, 987654.
func guessedFirst(pin string) bool {
	for period := 1; period <= len(pin)/2; period++ {
		if strings.Repeat(pin[:period], len(pin)/period+1)[:len(pin)] == pin {
			return true
		}
	}
	for _, row := range []string{"01234567890123456789", "98765432109876543210"} {
		if strings.Contains(row, pin) {
			return true
		}
	}
	return false
}
