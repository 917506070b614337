package sound

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Rate of all sounds, in Hz.
const Rate = 8000

// Debian is where its packages put Asterisk's sounds.
const Debian = "/usr/share/asterisk/sounds"

// Fallback is the language of last resort.
const Fallback = "en"

// Options say where sounds are.
type Options struct {
	Folders []string // each with a folder per language: de/conf-getpin.wav; searched before everything else
	System  string   // such a folder of the distribution; empty = Debian
	Memory  int      // bytes of PCM to keep; 0 = DefaultMemory
}

// DefaultMemory holds about eight minutes: all prompts of several languages.
const DefaultMemory = 8 << 20

const mostEntries = 4096 // what is missing takes no bytes, but a place

// Library finds sounds. All methods may be called from any goroutine; they read files.
type Library struct {
	places []fs.FS
	memory int

	mu    sync.Mutex
	cache map[key]*list.Element
	used  *list.List // of *entry, least lately used first
	stats Stats
}

type key struct{ language, name string }

type entry struct {
	key
	pcm []int16 // nil: there is no such sound in this language
}

// Stats count what happened since the start.
type Stats struct {
	Loads   uint64 // files read
	Missing uint64 // sounds asked for that no language has: a tone was played instead
	Broken  uint64 // files that can't be read
	Bytes   int    // of PCM in memory now
}

// Open makes a library. Folders that are missing now may come later.
func Open(o Options) *Library {
	l := &Library{memory: o.Memory, cache: make(map[key]*list.Element), used: list.New()}
	if l.memory <= 0 {
		l.memory = DefaultMemory
	}
	if o.System == "" {
		o.System = Debian
	}
	for _, folder := range append(slices.Clone(o.Folders), o.System) {
		l.places = append(l.places, os.DirFS(folder))
	}
	l.places = append(l.places, builtIn())
	return l
}

// Prompt returns the pieces of a prompt, to be played one after the other. They are shared: nobody may change them.
func (l *Library) Prompt(language string, names ...string) [][]int16 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var pieces [][]int16
	for _, name := range names {
		pieces = append(pieces, l.pieces(chain(language), name)...)
	}
	return pieces
}

// Stats are the counts so far.
func (l *Library) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Forget empties the memory, so that changed files count.
func (l *Library) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.cache)
	l.used.Init()
	l.stats.Bytes = 0
}

// Languages are those that have a prompt for the PIN.
func (l *Library) Languages() []string {
	found := map[string]bool{}
	for _, place := range l.places {
		folders, _ := fs.ReadDir(place, ".")
		for _, folder := range folders {
			language, _, _ := strings.Cut(folder.Name(), "_")
			if _, err := fs.Stat(place, folder.Name()+"/conf-getpin.wav"); err == nil {
				found[language] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func (l *Library) pieces(languages []string, name string) [][]int16 {
	if digits, ok := strings.CutPrefix(name, "number/"); ok {
		if n, err := strconv.Atoi(digits); err == nil && n >= 0 {
			return l.number(languages, n)
		}
	}
	for _, language := range languages {
		if pcm := l.find(language, name); pcm != nil {
			return [][]int16{pcm}
		}
	}
	if pcm := synthetic(name); pcm != nil {
		return [][]int16{pcm}
	}
	l.stats.Missing++
	return [][]int16{synthetic("beeperr")}
}

// number says n in the first language that can count: in words, or digit by digit where the set lacks a word.
func (l *Library) number(languages []string, n int) [][]int16 {
	for _, language := range languages {
		for _, names := range [][]string{Number(language, n), digitByDigit(n)} {
			if pieces, ok := l.all(language, names); ok {
				return pieces
			}
		}
	}
	l.stats.Missing++
	return [][]int16{synthetic("beeperr")}
}

func (l *Library) all(language string, names []string) (pieces [][]int16, ok bool) {
	for _, name := range names {
		pcm := l.find(language, name)
		if pcm == nil {
			return nil, false
		}
		pieces = append(pieces, pcm)
	}
	return pieces, true
}

// alternatives are other names for a sound that some sets lack.
func alternatives(name string) []string {
	switch name {
	case "goodbye":
		return []string{"vm-goodbye"}
	case "vm-goodbye":
		return []string{"goodbye"}
	case "digits/100":
		return []string{"digits/hundred"}
	case "please-try-call-later": // not in Debian's Spanish and Russian
		return []string{"please-try-again"}
	}
	return nil
}

// find returns a sound in one language, nil if there is none.
func (l *Library) find(language, name string) []int16 {
	k := key{language, name}
	if e := l.cache[k]; e != nil {
		l.used.MoveToBack(e)
		return e.Value.(*entry).pcm
	}
	var pcm []int16
	for _, name := range append([]string{name}, alternatives(name)...) {
		if pcm = l.load(language, name); pcm != nil {
			break
		}
	}
	l.keep(&entry{k, pcm})
	return pcm
}

func (l *Library) keep(e *entry) {
	l.cache[e.key] = l.used.PushBack(e)
	l.stats.Bytes += 2 * len(e.pcm)
	for l.stats.Bytes > l.memory && l.used.Len() > 1 || l.used.Len() > mostEntries {
		oldest := l.used.Remove(l.used.Front()).(*entry)
		delete(l.cache, oldest.key)
		l.stats.Bytes -= 2 * len(oldest.pcm)
	}
}

func (l *Library) load(language, name string) []int16 {
	if !validName(name) || !validName(language) || strings.Contains(language, "/") {
		return nil
	}
	for _, place := range l.places {
		for _, folder := range foldersOf(place, language) {
			file, err := place.Open(path.Join(folder, name+".wav"))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			pcm, err := read(file, err)
			if err != nil {
				l.stats.Broken++
				continue
			}
			l.stats.Loads++
			return pcm
		}
	}
	return nil
}

func read(file fs.File, err error) ([]int16, error) {
	if err != nil {
		return nil, err
	}
	defer file.Close()
	pcm, err := ReadWAV(file)
	if err == nil && len(pcm) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return pcm, err
}

// foldersOf are the folders of a language: its own, else those with more after it, as Debian's en_US_f_Allison.
func foldersOf(place fs.FS, language string) []string {
	if _, err := fs.Stat(place, language); err == nil {
		return []string{language}
	}
	found, _ := fs.Glob(place, language+"_*") // sorted; the pattern is valid because the name is
	return found
}

// chain is where to look for a language: itself, without its country, and English.
func chain(language string) []string {
	language = strings.ReplaceAll(language, "-", "_")
	short, _, _ := strings.Cut(language, "_")
	var list []string
	for _, l := range []string{language, strings.ToLower(short), Fallback} {
		if l != "" && !slices.Contains(list, l) {
			list = append(list, l)
		}
	}
	return list
}

// validName keeps names inside their folder.
func validName(name string) bool {
	if !filepath.IsLocal(name) || len(name) > 100 {
		return false
	}
	for _, r := range name {
		if r > 'z' || !strings.ContainsRune("/-_.", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return false
		}
	}
	return true
}

// Check says, in words for an admin, which folder is missing.
func (o Options) Check() error {
	for _, folder := range o.Folders {
		if info, err := os.Stat(folder); err != nil || !info.IsDir() {
			return fmt.Errorf("there is no folder %s", folder)
		}
	}
	return nil
}

// Speaks reports whether a language, or the same of another country, has prompts; else English is heard.
func (l *Library) Speaks(language string) bool {
	short, _, _ := strings.Cut(strings.ReplaceAll(language, "-", "_"), "_")
	return slices.Contains(l.Languages(), strings.ToLower(short))
}
