package pin

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var epoch = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

func testKey(t testing.TB) Key {
	t.Helper()
	key, err := ParseKey(strings.Repeat("0f", keySize))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestAPINMatchesItsSumInItsScopeOnly(t *testing.T) {
	key := testKey(t)
	other, err := ParseKey(strings.Repeat("f0", keySize))
	if err != nil {
		t.Fatal(err)
	}
	stored := key.Sum("!room:example.org", "482915")
	for _, c := range []struct {
		key        Key
		stored     []byte
		scope, pin string
		want       bool
	}{
		{key, stored, "!room:example.org", "482915", true},
		{key, stored, "!room:example.org", "482916", false},
		{key, stored, "!other:example.org", "482915", false},
		{other, stored, "!room:example.org", "482915", false},
		{key, nil, "!room:example.org", "482915", false},
		{key, stored[:31], "!room:example.org", "482915", false},
		{key, make([]byte, 32), "!room:example.org", "482915", false},
		{key, key.Sum("a", "12"), "a1", "2", false}, // the scope can't run into the PIN
	} {
		if got := c.key.Matches(c.stored, c.scope, c.pin); got != c.want {
			t.Errorf("Matches(%x, %q, %q) = %t, want %t", c.stored, c.scope, c.pin, got, c.want)
		}
	}
}

func TestTheKeyIsMadeOnceAndReadByItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin.key")
	var keys [8]Key
	var wg sync.WaitGroup
	for i := range keys { // several processes may start at once
		wg.Go(func() {
			key, err := LoadKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, key := range keys[1:] {
		if !bytes.Equal(key.Sum("", "1"), keys[0].Sum("", "1")) {
			t.Error("two loads gave two keys")
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v, want 0600", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".pin-key-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", keys[0], keys[0], keys[0], keys[0]); strings.ContainsAny(text, "0123456789") {
		t.Errorf("a key shows itself: %s", text)
	}
}

func TestABrokenKeyFileIsAnErrorThatDoesNotQuoteIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin.key")
	for _, text := range []string{"", "c0ffee", strings.Repeat("zz", keySize), strings.Repeat("ab", keySize+1)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadKey(path)
		if err == nil {
			t.Errorf("%q was taken for a key", text)
		}
		if text != "" && err != nil && strings.Contains(err.Error(), text) {
			t.Errorf("the error quotes the key: %v", err)
		}
	}
}

func TestPINsThatAreGuessedFirstAreRefused(t *testing.T) {
	for pin, ok := range map[string]bool{
		"482915": true, "100000": true, "0123456": false, "123456": false, "987654": false, "111111": false, "121212": false,
		"123123": false, "12345": false, "12345678901234567": false, "12a456": false, "": false, "１２３４５６": false, "890123": false,
		"1231231": false, "5554443": true,
	} {
		if err := Check(pin); (err == nil) != ok {
			t.Errorf("Check(%q) = %v, want ok=%t", pin, err, ok)
		}
	}
	seen := map[string]bool{}
	for range 1000 {
		pin := New(6)
		if len(pin) != 6 || Check(pin) != nil {
			t.Fatalf("New(6) = %q", pin)
		}
		seen[pin] = true
	}
	if len(seen) < 990 {
		t.Errorf("1000 new PINs are only %d different ones", len(seen))
	}
	if got := len(New(2)); got != Least {
		t.Errorf("New(2) has %d digits, want %d", got, Least)
	}
}

func TestGuessingEmptiesTheBudgetAndTimeFillsIt(t *testing.T) {
	b := NewBudget(Rates{Number: Rate{3, time.Minute}, Trunk: Rate{5, time.Second}, All: Rate{100, time.Second}})
	take := func(at time.Duration, number string, want bool) {
		t.Helper()
		if got := b.Take(epoch.Add(at), "carrier", number); got != want {
			t.Errorf("@%v %s: Take = %t, want %t", at, number, got, want)
		}
	}
	for range 3 {
		take(0, "a", true)
	}
	take(0, "a", false)
	take(59*time.Second, "a", false)
	take(60*time.Second, "a", true)
	take(60*time.Second, "a", false)
	take(-time.Hour, "a", false) // calls out of order must not fill a bucket twice
	take(60*time.Second, "a", false)
	for i := range 4 { // the trunk has 5, a took one
		take(61*time.Second, fmt.Sprint("b", i), i < 5)
	}
	b.Return(epoch.Add(61*time.Second), "carrier", "b0")
	take(61*time.Second, "b0", true)
	if !b.Take(epoch, "other trunk", "a") {
		t.Error("another trunk pays for this one")
	}
}

func TestForgedNumbersMeetTheBudgetOfTheTrunkAndNoEndlessMemory(t *testing.T) {
	b := NewBudget(DefaultRates())
	allowed := 0
	for i := range 50_000 {
		if b.Take(epoch, "carrier", fmt.Sprint(i)) {
			allowed++
		}
	}
	if want := DefaultRates().Trunk.Burst; allowed != want {
		t.Errorf("%d tries with forged numbers, want %d", allowed, want)
	}
	if got := b.used.Len(); got > most || got != len(b.buckets) {
		t.Errorf("%d buckets remembered, %d in the map, at most %d allowed", got, len(b.buckets), most)
	}
}

func TestWhoKnewAPINIsNotShutOutByAThiefOnTheSameTrunk(t *testing.T) {
	b := NewBudget(Rates{Number: Rate{2, time.Hour}, Trunk: Rate{5, time.Hour}, All: Rate{9, time.Hour}})
	if !b.Take(epoch, "carrier", "anna") {
		t.Fatal("the first try is refused")
	}
	b.Right(epoch, "carrier", "anna")
	b.Right(epoch, "carrier", "") // callers without a number are nobody
	for i := range 20 {
		b.Take(epoch, "carrier", fmt.Sprint(i))
	}
	for i, c := range []struct {
		number string
		want   bool
	}{{"ben", false}, {"", false}, {"anna", true}, {"anna", true}, {"anna", false}} {
		if got := b.Take(epoch, "carrier", c.number); got != c.want {
			t.Errorf("%d: %q may try: %t, want %t", i, c.number, got, c.want)
		}
	}
}

func TestATryThatFailsAtOneBucketIsTakenFromNone(t *testing.T) {
	b := NewBudget(Rates{Number: Rate{1, time.Hour}, Trunk: Rate{3, time.Hour}, All: Rate{9, time.Hour}})
	for range 20 {
		b.Take(epoch, "carrier", "thief")
	}
	for _, honest := range []string{"a", "b"} {
		if !b.Take(epoch, "carrier", honest) {
			t.Errorf("%s pays for the thief", honest)
		}
	}
}
