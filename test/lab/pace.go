package lab

import (
	"os"
	"sync"
	"time"
)

// pace knows when a phone's recording grew. baresip writes down what comes and nothing while nothing comes, so the file
// alone does not tell how long the line was dead.
type pace struct {
	mu    sync.Mutex // guards what follows
	file  string
	marks []mark
}

// mark says that so many samples were written at that moment.
type mark struct {
	at      time.Time
	samples int
}

const (
	paceEvery   = 5 * time.Millisecond
	paceNewFile = 100 * time.Millisecond // how soon the next call's file is noticed
	paceSlack   = 30 * time.Millisecond  // what comes less late is not late
	wavHeader   = 44
)

// watch follows the phone's newest recording until the phone ends.
func (w *pace) watch(p *Phone) {
	ticker := time.NewTicker(paceEvery)
	defer ticker.Stop()
	var looked time.Time
	for {
		select {
		case <-p.process.exited:
			return
		case now := <-ticker.C:
			if now.Sub(looked) > paceNewFile {
				looked = now
				if file, err := p.dump("dec"); err == nil {
					w.follow(file)
				}
			}
			w.look()
		}
	}
}

func (w *pace) follow(file string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if file != w.file {
		w.file, w.marks = file, nil
	}
}

func (w *pace) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	st, err := os.Stat(w.file)
	if err != nil {
		return // there was no call yet
	}
	n := int(st.Size()-wavHeader) / 2
	if last := len(w.marks) - 1; n > 0 && (last < 0 || w.marks[last].samples < n) {
		w.marks = append(w.marks, mark{time.Now(), n})
	}
}

// stretch puts silence where the line was dead. Times are those of the marks: after a hold baresip may have begun a new file.
func (w *pace) stretch(r Recording, file string) Recording {
	w.mu.Lock()
	defer w.mu.Unlock()
	if file != w.file || len(w.marks) == 0 {
		return r
	}
	// A sample is as late as the least late of those that follow: who was only held up catches up later.
	late := make([]time.Duration, len(w.marks))
	for i, m := range w.marks {
		late[i] = m.at.Sub(r.Start) - time.Duration(m.samples)*time.Second/time.Duration(r.Rate)
	}
	for i := len(late) - 2; i >= 0; i-- {
		late[i] = min(late[i], late[i+1])
	}
	var pcm []int16
	done, filled := 0, late[0]
	for i, m := range w.marks {
		if more := late[i] - filled; more > paceSlack {
			pcm = append(pcm, make([]int16, int(more.Seconds()*float64(r.Rate)))...)
			filled = late[i]
		}
		end := min(m.samples, len(r.PCM))
		pcm = append(pcm, r.PCM[done:max(done, end)]...)
		done = max(done, end)
	}
	r.PCM = append(pcm, r.PCM[done:]...)
	r.Start = r.Start.Add(late[0])
	return r
}
