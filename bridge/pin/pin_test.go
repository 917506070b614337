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
		if got := b.Take(epoch.Add(at), "carrier", number) != nil; got != want {
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
	last := b.Take(epoch.Add(61*time.Second), "carrier", "b0")
	if last == nil {
		t.Fatal("the trunk's last guess is refused")
	}
	take(61*time.Second, "b1", false)
	b.Return(last)
	take(61*time.Second, "b0", true)
	if b.Take(epoch, "other trunk", "a") == nil {
		t.Error("another trunk pays for this one")
	}
}

func TestForgedNumbersMeetTheBudgetOfTheTrunkAndNoEndlessMemory(t *testing.T) {
	b := NewBudget(DefaultRates())
	allowed := 0
	for i := range 50_000 {
		if b.Take(epoch, "carrier", fmt.Sprint(i)) != nil {
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
	enter(t, b, "anna", "!room")
	enter(t, b, "", "!room") // callers without a number are nobody
	for i := range 20 {
		b.Take(epoch, "carrier", fmt.Sprint(i))
	}
	for i, c := range []struct {
		number string
		want   bool
	}{{"ben", false}, {"", false}, {"anna", true}, {"anna", true}, {"anna", false}} {
		if got := b.Take(epoch, "carrier", c.number) != nil; got != c.want {
			t.Errorf("%d: %q may try: %t, want %t", i, c.number, got, c.want)
		}
	}
}

func enter(t *testing.T, b *Budget, number, room string) (known Known, ok bool) {
	t.Helper()
	try := b.Take(epoch, "carrier", number)
	if try == nil {
		t.Fatalf("%q is not let in by the right PIN", number)
	}
	return b.Right(epoch, try, room)
}

// Whoever knows PINs, of a room of their own, say, can make every number that they forge a known one. Together these may guess little more than
// strangers do, and they shut out nobody who knows the PIN of another room.
func TestWhoKnowsOnePINGuessesOthersLittleOftenerThanAStranger(t *testing.T) {
	rates := DefaultRates()
	for rooms, most := range map[int]int{1: rates.Trunk.Burst + rates.Room.Burst, 2: rates.Trunk.Burst + 2*rates.Room.Burst, 50: 2 * rates.Trunk.Burst} {
		b := NewBudget(rates)
		enter(t, b, "anna", "!hers")
		enter(t, b, "anna", "!thieves0") // whoever forges her number does not make her one of them
		enter(t, b, "ben", "!thieves0")
		for i := range 1000 {
			enter(t, b, fmt.Sprint(i), fmt.Sprint("!thieves", i%rooms))
		}
		guesses := 0
		for i := range 1000 {
			if guesses == rates.Room.Burst && rooms == 1 {
				enter(t, b, "ben", "!thieves0") // there is what strangers have
			}
			for b.Take(epoch, "carrier", fmt.Sprint(i)) != nil {
				guesses++
			}
		}
		if guesses != most {
			t.Errorf("%d guesses with forged numbers that know PINs of %d rooms, want %d", guesses, rooms, most)
		}
		if got := b.Take(epoch, "carrier", "anna") != nil; got != (rooms < 3) { // of 50 rooms nobody has the PINs
			t.Errorf("beside thieves of %d rooms she may enter her PIN: %t", rooms, got)
		}
	}
}

// All who withhold their number look alike. One of them who mistypes, or guesses twice as often as a number may, shuts out none of the
// others; and one who guesses all the time never uses up what is left to callers with a number.
func TestCallersWithoutANumberShareABudgetOfTheirOwn(t *testing.T) {
	b := NewBudget(DefaultRates())
	for i := range 12 {
		if b.Take(epoch, "carrier", "") == nil {
			t.Fatalf("guess %d without a number is refused", i+1)
		}
	}
	now, guesses := epoch, 12
	for range 24 * 60 * 6 {
		if b.Take(now, "carrier", "") != nil {
			guesses++
		}
		now = now.Add(10 * time.Second)
	}
	if guesses < 500 || guesses > 800 {
		t.Errorf("%d guesses a day without a number, want 20 and one each two minutes", guesses)
	}
	for i := range 30 {
		if b.Take(now, "carrier", fmt.Sprint("+4930", i)) == nil {
			t.Fatalf("number %d pays for callers without one", i+1)
		}
	}
}

func TestATryThatFailsAtOneBucketIsTakenFromNone(t *testing.T) {
	b := NewBudget(Rates{Number: Rate{1, time.Hour}, Trunk: Rate{3, time.Hour}, All: Rate{9, time.Hour}})
	for range 20 {
		b.Take(epoch, "carrier", "thief")
	}
	for _, honest := range []string{"a", "b"} {
		if b.Take(epoch, "carrier", honest) == nil {
			t.Errorf("%s pays for the thief", honest)
		}
	}
}

// What is stored of one process's budget is what the next one begins with, and no clock that was wrong shuts anybody out for longer than
// an empty bucket takes to fill.
func TestABudgetIsRememberedByTheNextProcess(t *testing.T) {
	rates := Rates{Number: Rate{2, time.Hour}, Trunk: Rate{3, time.Minute}, All: Rate{9, time.Minute}, Room: Rate{4, time.Minute}}
	stored, known := map[string]time.Time{}, map[string]Known{}
	first := NewBudget(rates)
	wrong := func(number string) {
		t.Helper()
		try := first.Take(epoch, "carrier", number)
		if try == nil {
			t.Fatalf("%s may not guess", number)
		}
		for _, c := range first.Costs(try) {
			stored[c.Name] = later(stored[c.Name], epoch).Add(c.Later)
		}
	}
	wrong("thief")
	wrong("thief")
	for _, number := range []string{"anna", "fred"} {
		known[number], _ = enter(t, first, number, "!room")
	}
	if got, ok := enter(t, first, "anna", "!other"); ok {
		t.Errorf("who knows a PIN already is stored with another: %v", got)
	}
	wrong("fred")
	wrong("ben")
	stored[`number "carrier" "carl"`] = epoch.AddDate(50, 0, 0)
	known["dora"] = Known{"!room", epoch.AddDate(50, 0, 0)}
	known[""] = Known{"!room", epoch.Add(time.Hour)} // callers without a number are nobody
	for _, c := range []struct {
		number string
		after  time.Duration
		want   int // guesses at once
	}{
		{"thief", 0, 0},
		{"thief", time.Hour, 1},
		{"thief", 2 * time.Hour, 2},
		{"anna", 0, 2},
		{"anna", KnownFor + time.Second, 2},
		{"fred", 0, 1},
		{"ben", 0, 0},
		{"ben", time.Minute, 1}, // the trunk's bucket is empty
		{"carl", 0, 0},
		{"carl", 2 * time.Hour, 0},
		{"dora", 0, 0},
		{"", 0, 0},
		{"eve", 2 * time.Minute, 2},
	} {
		next, now, got := NewBudget(rates), epoch.Add(c.after), 0
		read := map[string]time.Time{}
		for _, name := range next.Names("carrier", c.number, known[c.number].Room) {
			if at, ok := stored[name]; ok {
				read[name] = at
			}
		}
		next.Learn(now, "carrier", c.number, known[c.number], read)
		for next.Take(now, "carrier", c.number) != nil {
			got++
		}
		if got != c.want {
			t.Errorf("%q may guess %d times %v after the restart, want %d", c.number, got, c.after, c.want)
		}
		if c.number == "carl" && next.Take(now.Add(time.Hour), "carrier", "carl") == nil {
			t.Error("a wrong clock shuts a number out for longer than a thief")
		}
	}
}
