package sound

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNumbersAreSaidAsAsteriskDoes(t *testing.T) {
	for _, c := range []struct {
		language string
		n        int
		want     string
	}{
		{"en", 0, "0"},
		{"en", 7, "7"},
		{"en", 19, "19"},
		{"en", 20, "20"},
		{"en", 23, "20 3"},
		{"en", 100, "1 hundred"},
		{"en", 342, "3 hundred 40 2"},
		{"en_US", 21, "20 1"},
		{"pt", 21, "20 1"},
		{"en", 1203, "1 2 0 3"},
		{"en", -5, "0"},
		{"de", 1, "1"},
		{"de", 21, "1-and 20"},
		{"de", 30, "30"},
		{"de", 100, "hundred"},
		{"de", 101, "1N hundred 1"},
		{"de", 136, "1N hundred 6-and 30"},
		{"de", 999, "9 hundred 9-and 90"},
		{"es", 21, "21"},
		{"es", 30, "30"},
		{"es", 31, "30 and 1"},
		{"es", 40, "40"},
		{"es", 100, "100"},
		{"es", 101, "100-and 1"},
		{"es", 555, "500 50 and 5"},
		{"es_MX", 200, "200"},
		{"fr", 21, "20 et 1"},
		{"fr", 22, "20 2"},
		{"fr", 70, "60 10"},
		{"fr", 71, "60 et 11"},
		{"fr", 77, "60 17"},
		{"fr", 80, "80"},
		{"fr", 81, "80 1"},
		{"fr", 99, "80 19"},
		{"fr", 100, "hundred"},
		{"fr", 171, "hundred 60 et 11"},
		{"fr", 200, "2 hundred"},
		{"it", 21, "21"},
		{"it", 22, "20 2"},
		{"it", 28, "28"},
		{"it", 98, "98"},
		{"it", 100, "hundred"},
		{"it", 138, "hundred 38"},
		{"it", 231, "2 hundred 31"},
		{"ru", 21, "20 1"},
		{"ru", 100, "100"},
		{"ru", 342, "300 40 2"},
		{"ru", 215, "200 15"},
	} {
		got := strings.ReplaceAll(strings.Join(Number(c.language, c.n), " "), "digits/", "")
		if got != c.want {
			t.Errorf("%s %d: %s, want %s", c.language, c.n, got, c.want)
		}
	}
}

// folderWith makes a set of the admin: sounds of the given length in samples.
func folderWith(t testing.TB, sounds map[string]int) string {
	t.Helper()
	folder := t.TempDir()
	for name, samples := range sounds {
		path := filepath.Join(folder, name+".wav")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, wav(tagPCM, 1, Rate, 16, make([]byte, 2*samples)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// without has nothing but an admin's folders.
func without(t testing.TB, folders ...string) *Library {
	t.Helper()
	l := Open(Options{Folders: folders, System: t.TempDir()})
	l.places = l.places[:len(l.places)-1] // the built-in set may have been made or not
	return l
}

func lengths(pieces [][]int16) string {
	var list []int
	for _, p := range pieces {
		list = append(list, len(p))
	}
	return fmt.Sprint(list)
}

func TestSoundsAreFoundInTheirOrder(t *testing.T) {
	first := folderWith(t, map[string]int{"es_MX/a": 1, "es/a": 2, "es/b": 3, "en_US_f_Allison/a": 4, "en_US_f_Allison/c": 5})
	second := folderWith(t, map[string]int{"es/a": 6, "es/d": 7, "en/c": 8})
	l := without(t, first, second)
	for _, c := range []struct{ language, name, want string }{
		{"es_MX", "a", "[1]"}, // the country's
		{"es-MX", "b", "[3]"},
		{"es", "a", "[2]"},
		{"es", "d", "[7]"}, // another folder before another language
		{"es", "c", "[5]"}, // English, Debian's name
		{"fr", "a", "[4]"},
		{"", "a", "[4]"},
		{"EN", "c", "[5]"},
	} {
		if got := lengths(l.Prompt(c.language, c.name)); got != c.want {
			t.Errorf("%s/%s: %s, want %s", c.language, c.name, got, c.want)
		}
	}
	if missing := l.Stats().Missing; missing != 0 {
		t.Errorf("%d are missing", missing)
	}
}

func TestWhatIsMissingOrBrokenIsAToneAndCounted(t *testing.T) {
	folder := folderWith(t, map[string]int{"en/a": 1})
	for name, content := range map[string]string{"en/text": "hello", "en/empty": "", "en/cut": string(wav(tagPCM, 1, Rate, 16, nil))} {
		if err := os.WriteFile(filepath.Join(folder, name+".wav"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := without(t, folder)
	tone := lengths([][]int16{synthetic("beeperr")})
	for _, name := range []string{"text", "empty", "cut", "nothing", "../secret", "/etc/passwd", "a/../../b", "*", "", "number/x", "number/-1", "number/5"} {
		if got := lengths(l.Prompt("en", name)); got != tone {
			t.Errorf("%q: %s, want a tone %s", name, got, tone)
		}
	}
	if got := l.Stats(); got.Missing != 12 || got.Broken != 3 || got.Loads != 0 {
		t.Errorf("stats %+v, want 12 missing, 3 broken", got)
	}
	if got := lengths(l.Prompt("../..", "a")); got != "[1]" {
		t.Errorf("a strange language: %s, want English", got)
	}
	for _, name := range []string{"beep", "hold"} {
		if got := l.Prompt("xx", name); len(got) != 1 || len(got[0]) < Rate/5 {
			t.Errorf("%s: %s", name, lengths(got))
		}
	}
}

func TestNumbersAreSpelledWhereWordsAreMissing(t *testing.T) {
	sounds := map[string]int{"ru/digits/100": 100, "ru/digits/5": 5}
	for d := range 10 {
		sounds[fmt.Sprintf("en/digits/%d", d)] = 10 + d
		sounds[fmt.Sprintf("ru/digits/%d", d)] = 20 + d
	}
	l := without(t, folderWith(t, sounds))
	for _, c := range []struct {
		n    int
		want string
	}{{105, "[100 25]"}, {205, "[22 20 25]"}, {1234, "[21 22 23 24]"}} {
		if got := lengths(l.Prompt("ru", fmt.Sprintf("number/%d", c.n))); got != c.want {
			t.Errorf("number/%d: %s, want %s", c.n, got, c.want)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	sounds := map[string]int{}
	for i := range 20 {
		sounds[fmt.Sprintf("en/s%d", i)] = 1000
	}
	l := without(t, folderWith(t, sounds))
	l.memory = 10_000 // five sounds
	for range 3 {
		for i := range 20 {
			l.Prompt("en", fmt.Sprintf("s%d", i))
		}
		for i := range 3 * mostEntries { // names that nobody has
			l.find("en", fmt.Sprintf("x%d/", i))
		}
	}
	if got := l.Stats().Bytes; got > l.memory || l.used.Len() > mostEntries || len(l.cache) != l.used.Len() {
		t.Errorf("%d bytes, %d entries, %d in the map", got, l.used.Len(), len(l.cache))
	}
	loads := l.Stats().Loads
	l.Prompt("en", "s1", "s1", "s1")
	if got := l.Stats().Loads - loads; got != 1 {
		t.Errorf("three prompts read %d files, want 1", got)
	}
	l.Forget()
	if got := l.Stats().Bytes; got != 0 || len(l.cache) != 0 {
		t.Errorf("forgotten, and still %d bytes", got)
	}
}

// Every sound that a menu plays is there in all of Debian's languages, and so is every number.
func TestDebiansSetsHaveAllPrompts(t *testing.T) {
	l := Open(Options{})
	l.places = l.places[:1]
	have := l.Languages()
	for _, language := range []string{"en", "es", "fr", "it", "ru"} {
		if os.Getenv("CI") != "" && !slices.Contains(have, language) {
			t.Errorf("no %s voice; the image has it, and scripts/need.sh installs it", language)
		}
	}
	if len(have) == 0 && !t.Failed() {
		t.Skip("asterisk-core-sounds-*-wav is not installed")
	}
	t.Log(have)
	for _, language := range have {
		for _, name := range prompts(t) {
			if l.find(language, name) == nil {
				t.Errorf("%s lacks %s", language, name)
			}
		}
		for n := range 1000 {
			if _, ok := l.all(language, Number(language, n)); !ok && (n < 200 || language != "ru") { // its 200 to 900 were not recorded
				t.Errorf("%s can't say %d: %v", language, n, Number(language, n))
			}
		}
	}
	if got := l.Stats(); got.Broken != 0 {
		t.Errorf("%+v", got)
	}
}

// prompts are those that bridge/menu plays in its traces, less what is synthetic or a number.
func prompts(t testing.TB) []string {
	t.Helper()
	traces, err := filepath.Glob("../menu/testdata/*.trace")
	if err != nil || len(traces) == 0 {
		t.Fatalf("no traces of the menu: %v", err)
	}
	var names []string
	for _, path := range traces {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			_, sounds, found := strings.Cut(strings.TrimSpace(line), ": ")
			if !found || !strings.HasPrefix(strings.TrimSpace(line), "do play ") {
				continue
			}
			for _, name := range strings.Fields(sounds) {
				if !strings.HasPrefix(name, "number/") && synthetic(name) == nil && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	if len(names) < 10 {
		t.Errorf("the menu plays %v only", names)
	}
	return names
}

// The built-in set, where it has been made, says everything in all its languages.
func TestBuiltInWordsHaveAllPrompts(t *testing.T) {
	l := Open(Options{System: t.TempDir()})
	l.places = l.places[1:]
	if !l.Speaks("de") {
		t.Skip("scripts/make-sounds.sh has not been run")
	}
	if got, want := fmt.Sprint(l.Languages()), "[de en es fr it ru]"; got != want {
		t.Errorf("languages %s, want %s", got, want)
	}
	for _, language := range l.Languages() {
		for _, name := range prompts(t) {
			pcm := l.find(language, name)
			if seconds := float64(len(pcm)) / Rate; seconds < 0.2 || seconds > 6 {
				t.Errorf("%s/%s lasts %.1f s", language, name, seconds)
			}
			if level := loudness(pcm); level < -22 || level > -17 {
				t.Errorf("%s/%s is at %.1f dBov, want −19 as the other sets", language, name, level)
			}
		}
		for n := range 1000 {
			if _, ok := l.all(language, Number(language, n)); !ok {
				t.Errorf("%s can't say %d: %v", language, n, Number(language, n))
			}
		}
	}
}

// loudness is the root mean square in dB below overload.
func loudness(pcm []int16) float64 {
	sum := 0.0
	for _, x := range pcm {
		sum += float64(x) * float64(x)
	}
	return 10 * math.Log10(sum/float64(len(pcm))/32768/32768)
}

// wav is a file with the given format and body.
func wav(tag, channels, rate, bits int, body []byte) []byte {
	b := []byte("RIFF\x00\x00\x00\x00WAVELIST\x03\x00\x00\x00abc\x00fmt \x10\x00\x00\x00")
	b = binary.LittleEndian.AppendUint16(b, uint16(tag))
	b = binary.LittleEndian.AppendUint16(b, uint16(channels))
	b = binary.LittleEndian.AppendUint32(b, uint32(rate))
	b = binary.LittleEndian.AppendUint32(b, uint32(rate*channels*bits/8))
	b = binary.LittleEndian.AppendUint16(b, uint16(channels*bits/8))
	b = binary.LittleEndian.AppendUint16(b, uint16(bits))
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

// sine is a second of 16 bit PCM.
func sine(hz float64, rate, channels int) []byte {
	var b []byte
	for i := range rate {
		for c := range channels {
			x := 16000 * math.Sin(2*math.Pi*hz*float64(i)/float64(rate))
			if c > 0 {
				x = 0 // only the first channel counts
			}
			b = binary.LittleEndian.AppendUint16(b, uint16(int16(x)))
		}
	}
	return b
}

// strength of a frequency in sound, of 16000.
func strength(pcm []int16, hz float64) float64 {
	var re, im float64
	for i, x := range pcm {
		sin, cos := math.Sincos(2 * math.Pi * hz * float64(i) / Rate)
		re += float64(x) * cos
		im += float64(x) * sin
	}
	return 2 * math.Hypot(re, im) / float64(len(pcm))
}

func TestSoundOfAnyRateComesOutAtEightKilohertz(t *testing.T) {
	for _, rate := range []int{8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 7350} {
		for _, channels := range []int{1, 2} {
			pcm, err := ReadWAV(bytes.NewReader(wav(tagPCM, channels, rate, 16, sine(1000, rate, channels))))
			if err != nil {
				t.Fatalf("%d Hz: %v", rate, err)
			}
			if n := len(pcm); n < Rate-2 || n > Rate {
				t.Errorf("%d Hz: %d samples, want %d", rate, n, Rate)
			}
			if got := strength(pcm, 1000); math.Abs(got-16000) > 800 {
				t.Errorf("%d Hz: 1 kHz at %.0f, want 16000", rate, got)
			}
		}
		if rate >= 16000 { // what phones can't carry must not come back as something else
			pcm, err := ReadWAV(bytes.NewReader(wav(tagPCM, 1, rate, 16, sine(6000, rate, 1))))
			if err != nil {
				t.Fatal(err)
			}
			if got := strength(pcm, 2000); got > 100 {
				t.Errorf("%d Hz: 6 kHz comes back as 2 kHz at %.0f", rate, got)
			}
		}
	}
}

func TestFormatsOfWAVAreRead(t *testing.T) {
	extensible := wav(tagPCM, 1, Rate, 16, []byte{1, 2})
	at := bytes.Index(extensible, []byte("fmt "))
	chunk := binary.LittleEndian.AppendUint32([]byte("fmt "), 40)
	chunk = append(chunk, extensible[at+8:at+24]...)
	binary.LittleEndian.PutUint16(chunk[8:], tagExtensible)
	chunk = append(chunk, 22, 0, 16, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71)
	extensible = slices.Concat(extensible[:at], chunk, extensible[at+24:])
	pipe := wav(tagPCM, 1, Rate, 16, []byte{1, 2, 3, 4})
	binary.LittleEndian.PutUint32(pipe[len(pipe)-8:], 0xffffffff)
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"16 bit":       {wav(tagPCM, 1, Rate, 16, []byte{0, 0, 0xff, 0x7f, 0, 0x80}), "[0 32767 -32768]"},
		"8 bit":        {wav(tagPCM, 1, Rate, 8, []byte{128, 255, 0}), "[0 32512 -32768]"},
		"µ-law":        {wav(tagULaw, 1, Rate, 8, []byte{0xff, 0x80, 0x00, 0x7f}), "[0 32124 -32124 0]"},
		"A-law":        {wav(tagALaw, 1, Rate, 8, []byte{0xd5, 0x55, 0xaa, 0x2a}), "[8 -8 32256 -32256]"},
		"extensible":   {extensible, "[513]"},
		"half a frame": {wav(tagPCM, 2, Rate, 16, []byte{1, 0, 9, 9, 2, 0}), "[1]"},
		"of a pipe":    {pipe, "[513 1027]"},
		"24 bit":       {wav(tagPCM, 1, Rate, 24, make([]byte, 6)), "[]"},
		"GSM":          {wav(49, 1, Rate, 0, make([]byte, 65)), "[]"},
		"no rate":      {wav(tagPCM, 1, 0, 16, make([]byte, 4)), "[]"},
		"no channel":   {wav(tagPCM, 0, Rate, 16, make([]byte, 4)), "[]"},
		"no data":      {wav(tagPCM, 1, Rate, 16, nil)[:48], "[]"},
		"text":         {[]byte("RIFFabcdWAVEdata"), "[]"},
	} {
		pcm, err := ReadWAV(bytes.NewReader(c.file))
		if got := fmt.Sprint(pcm); got != c.want || (err == nil) != (c.want != "[]") {
			t.Errorf("%s: %s, %v, want %s", name, got, err, c.want)
		}
	}
}

func TestWhatWasWrittenIsReadAgain(t *testing.T) {
	for x := -32768; x <= 32767; x += 13 {
		var file bytes.Buffer
		if err := WriteWAV(&file, []int16{int16(x)}); err != nil {
			t.Fatal(err)
		}
		got, err := ReadWAV(&file)
		if err != nil || len(got) != 1 {
			t.Fatalf("%d: %v, %v", x, got, err)
		}
		if off := math.Abs(float64(int(got[0]) - x)); off > 4+math.Abs(float64(x))/24 {
			t.Fatalf("%d became %d", x, got[0])
		}
	}
}

// FuzzReadWAV reads anything without failing, and keeps within the limits.
func FuzzReadWAV(f *testing.F) {
	f.Add(wav(tagPCM, 1, Rate, 16, []byte{1, 2, 3}))
	f.Add(wav(tagPCM, 2, 44100, 8, make([]byte, 100)))
	f.Add(wav(tagULaw, 1, 4000, 8, []byte{1}))
	f.Add(wav(tagExtensible, 8, 191_999, 16, make([]byte, 64)))
	f.Fuzz(func(t *testing.T, file []byte) {
		pcm, err := ReadWAV(bytes.NewReader(file))
		if err != nil && pcm != nil {
			t.Fatalf("%d samples and %v", len(pcm), err)
		}
		if len(pcm) > longest || len(pcm) > 2*len(file) {
			t.Fatalf("%d samples of %d bytes", len(pcm), len(file))
		}
	})
}
