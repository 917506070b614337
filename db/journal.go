package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"maunium.net/go/mautrix/id"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Limits of a journal.
const (
	maxWaiting      = 20000           // writes that wait; each row has two at most, as a rule
	attemptPatience = 3 * time.Second // a write that takes longer did not happen, as far as we know; should it yet, its number tells
	firstPause      = 100 * time.Millisecond
	longestPause    = 2 * time.Second
	knownTxns       = 1000 // transactions of the homeserver remembered in memory
)

// Errors of a journal.
var (
	// ErrAway: the database does not answer, so what must be durable before it is acted upon cannot be done.
	ErrAway = errors.New("the database is away")
	// ErrFull: too many writes wait already. This one was not taken.
	ErrFull = errors.New("too many writes wait for the database")
)

// Journal is an ordered queue of writes in memory in front of a [Store]. While the database is away, calls that are up go
// on: what they write waits, and is written in order when the database is back. A write of a row replaces one that still
// waits. What was taken is lost only if the process dies before it is written.
//
// Any goroutine puts, none blocks. [Journal.Run] alone takes out; when it ends, what waits is lost, so [Journal.Flush] first.
type Journal struct {
	store *Store
	owner string
	log   *slog.Logger
	some  chan struct{} // has one token while writes may wait

	mu     sync.Mutex        // guards what follows
	queue  []*write          // oldest first
	latest map[string]*write // of queue, by row
	flying *write            // the first of queue, while it is being written
	taken  uint64            // writes that ever came into queue, and
	gone   uint64            // that left it
	last   int64             // number of a write
	away   time.Time         // since when the database does not answer; zero = it does
	long   bool              // it has been away for longer than a busy machine explains, which was told
	counts JournalStats
	txns   []string // transactions seen by this process, newest last
}

// longAway is when somebody should look after the database: less may be the machine's being busy.
const longAway = 2 * time.Second

// JournalStats say how it is and has been.
type JournalStats struct {
	Waiting  int           // writes that are not in the database
	Away     time.Duration // for how long the database has not answered
	Written  uint64
	Merged   uint64 // replaced by a later write of the row before they were written
	Outages  uint64
	Rejected uint64 // refused by the database for good: a fault of ours
	Refused  uint64 // not taken, because too many waited
}

// write is one that waits.
type write struct {
	row     string // what it writes
	put     bool   // a later put of the row may replace it
	do      func(ctx context.Context, s *Store, number int64) error
	number  int64        // it came after all with a smaller one
	waiting []chan error // those who need it to be durable; each has room for one
}

// NewJournal makes one for s and the process run owner, without whose lease it writes nothing. Nothing is written before
// [Journal.Run].
func NewJournal(s *Store, owner string, log *slog.Logger) *Journal {
	return &Journal{store: s, owner: owner, log: log, some: make(chan struct{}, 1), latest: make(map[string]*write)}
}

// PutLeg writes the leg some time, see [Store.PutLeg].
func (j *Journal) PutLeg(l Leg) error { return j.put(putLeg(l), nil) }

// PutLegThen is PutLeg that tells what has come of it. While the database is away it tells so at once, and the write waits all the same.
func (j *Journal) PutLegThen(l Leg) (done <-chan error, err error) {
	told := make(chan error, 1)
	if err := j.put(putLeg(l), told); err != nil {
		told = make(chan error, 1)
		told <- err
		return told, err
	}
	return told, nil
}

// SaveLeg returns when the leg is in the database, and ErrAway if that cannot be now. Then it may still be written later,
// so a leg that is given up must be deleted.
func (j *Journal) SaveLeg(ctx context.Context, l Leg) error { return j.save(ctx, putLeg(l)) }

// BeginSave is SaveLeg whose place in the queue is taken now, before that of any later write; what it returns waits, once.
func (j *Journal) BeginSave(l Leg) (wait func(context.Context) error) { return j.begin(putLeg(l)) }

// BeginMove puts a leg as one that goes over another trunk, see [Store.MoveLeg]; what it returns waits for that, and gives ErrAway if it
// cannot be now. decide may be called more than once.
func (j *Journal) BeginMove(l Leg, decide func([]Usage) (time.Duration, error)) (wait func(context.Context) (time.Duration, error)) {
	var longest time.Duration
	var refused error // the caller's business, which is no fault of the write
	written := j.begin(write{row: "leg " + l.ID, do: func(ctx context.Context, s *Store, number int64) (err error) {
		refused = nil
		longest, err = s.moveLeg(ctx, l, number, func(used []Usage) (longest time.Duration, err error) {
			longest, refused = decide(used)
			return longest, refused
		})
		if refused != nil {
			return nil
		}
		return err
	}})
	return func(ctx context.Context) (time.Duration, error) {
		if err := written(ctx); err != nil {
			return 0, err // it may be under way still
		}
		return longest, refused
	}
}

func putLeg(l Leg) write {
	return write{row: "leg " + l.ID, put: true, do: func(ctx context.Context, s *Store, number int64) error { return s.putLeg(ctx, l, number) }}
}

// DeleteLeg ends the leg some time, see [Store.DeleteLeg].
func (j *Journal) DeleteLeg(id string, by Hold, cause string, now time.Time) error {
	return j.put(write{row: "leg " + id, do: func(ctx context.Context, s *Store, number int64) error {
		return s.deleteLeg(ctx, id, by, cause, now, number)
	}}, nil)
}

// SaveMembership returns when the membership is in the database, and ErrAway if that cannot be now.
func (j *Journal) SaveMembership(ctx context.Context, m Membership) error {
	return j.save(ctx, write{row: "membership " + m.Ghost + " " + m.RoomID, put: true, do: func(ctx context.Context, s *Store, number int64) error {
		return s.putMembership(ctx, m, number)
	}})
}

// DeleteMembership forgets the membership some time.
func (j *Journal) DeleteMembership(ghost, room string, by Hold) error {
	return j.put(write{row: "membership " + ghost + " " + room, do: func(ctx context.Context, s *Store, number int64) error {
		return s.deleteMembership(ctx, ghost, room, by, number)
	}}, nil)
}

// save puts a write and waits for it.
func (j *Journal) save(ctx context.Context, w write) error { return j.begin(w)(ctx) }

// begin puts a write, and returns what waits for it.
func (j *Journal) begin(w write) (wait func(context.Context) error) {
	done := make(chan error, 1)
	err := fmt.Errorf("save %s: %w", w.row, ErrAway)
	if !j.Away() {
		err = j.put(w, done)
	}
	if err != nil {
		return func(context.Context) error { return err }
	}
	row := w.row
	return func(ctx context.Context) error {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return fmt.Errorf("save %s: %w: %w", row, ErrAway, context.Cause(ctx))
		}
	}
}

// put appends w, or lets it take the place of a put of the same row that has not begun.
func (j *Journal) put(w write, done chan error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	w.number = j.last
	switch {
	case done != nil && j.away.IsZero():
		w.waiting = append(w.waiting, done)
	case done != nil:
		done <- fmt.Errorf("save %s: %w", w.row, ErrAway)
	}
	if last := j.latest[w.row]; w.put && last != nil && last.put && last != j.flying {
		w.waiting = append(w.waiting, last.waiting...)
		*last = w
		j.counts.Merged++
		return nil
	}
	if len(j.queue) >= maxWaiting {
		j.counts.Refused++
		return fmt.Errorf("write %s: %w", w.row, ErrFull)
	}
	j.queue = append(j.queue, &w)
	j.latest[w.row] = &w
	j.taken++
	select {
	case j.some <- struct{}{}:
	default:
	}
	return nil
}

// Run writes until ctx ends. It returns [ErrFenced] as soon as a write says so: the rows belong to another process then.
func (j *Journal) Run(ctx context.Context) error {
	pause := firstPause
	for {
		w := j.next(ctx)
		if w == nil {
			return nil
		}
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptPatience)
		err := w.do(attempt, j.store, w.number)
		cancel()
		if isAway(err) {
			j.Report(err)
			j.landed()
			if sleep(ctx, pause) != nil {
				return nil
			}
			pause = min(2*pause, longestPause)
			continue
		}
		pause = firstPause
		j.written(w, err)
		if errors.Is(err, ErrFenced) {
			return err
		}
	}
}

// next waits for the write that is due; nil when ctx ended.
func (j *Journal) next(ctx context.Context) *write {
	for {
		j.mu.Lock()
		if len(j.queue) > 0 {
			j.flying = j.queue[0]
			j.mu.Unlock()
			return j.flying
		}
		j.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-j.some:
		}
	}
}

// landed lets a write that failed wait again; a later one may replace it.
func (j *Journal) landed() {
	j.mu.Lock()
	j.flying = nil
	j.mu.Unlock()
}

// written takes w out and tells those who waited.
func (j *Journal) written(w *write, err error) {
	j.Report(nil)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.queue, j.flying = j.queue[1:], nil
	if j.latest[w.row] == w {
		delete(j.latest, w.row)
	}
	j.gone++
	switch {
	case err == nil:
		j.counts.Written++
	case !errors.Is(err, ErrFenced):
		j.counts.Rejected++
		j.log.Error("the database refuses a write", "row", w.row, "err", err)
	}
	for _, c := range w.waiting {
		c <- err
	}
}

// Report tells the journal how a question to the database went that was asked elsewhere. Errors that do not mean that the
// database is away say nothing.
func (j *Journal) Report(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case err == nil && !j.away.IsZero():
		j.log.Info("the database is back", "away", time.Since(j.away).Round(time.Millisecond), "waiting", len(j.queue))
		j.away, j.long = time.Time{}, false
	case isAway(err) && j.away.IsZero():
		j.away = time.Now()
		j.counts.Outages++
		j.log.Warn("the database does not answer; calls go on, new ones are refused", "err", err)
	case isAway(err) && !j.long && time.Since(j.away) >= longAway:
		j.long = true
		j.log.Error("the database still does not answer", "away", time.Since(j.away).Round(time.Millisecond), "err", err)
	}
	if j.away.IsZero() {
		return
	}
	for _, w := range j.queue {
		for _, c := range w.waiting {
			c <- fmt.Errorf("save %s: %w", w.row, ErrAway)
		}
		w.waiting = nil
	}
}

// Away tells whether the database does not answer.
func (j *Journal) Away() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.away.IsZero()
}

// Stats says how it is and has been.
func (j *Journal) Stats() JournalStats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.counts
	s.Waiting = len(j.queue)
	if !j.away.IsZero() {
		s.Away = time.Since(j.away)
	}
	return s
}

// Flush waits until what waits now is written, while Run runs. What is put meanwhile it does not wait for: on a busy day
// there is always something.
func (j *Journal) Flush(ctx context.Context) error {
	j.mu.Lock()
	last := j.taken
	j.mu.Unlock()
	for {
		j.mu.Lock()
		gone := j.gone
		j.mu.Unlock()
		if gone >= last {
			return nil
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("%d writes still wait: %w", last-gone, ErrAway)
		}
	}
}

// What package matrixcall remembers goes through the journal, too, so that its side of a call lives on.

// GhostDevice is [Store.GhostDevice].
func (j *Journal) GhostDevice(ctx context.Context, user id.UserID) (id.DeviceID, error) {
	return j.store.GhostDevice(ctx, user)
}

// SaveGhostDevice is [Store.SaveGhostDevice]: a device must be known before it is made.
func (j *Journal) SaveGhostDevice(ctx context.Context, user id.UserID, device id.DeviceID) error {
	return j.save(ctx, write{row: "ghost " + string(user), do: j.fenced(func(ctx context.Context, s *Store) error {
		return s.SaveGhostDevice(ctx, user, device)
	})})
}

// SyncToken is [Store.SyncToken]. Tokens that wait are written first.
func (j *Journal) SyncToken(ctx context.Context, user id.UserID) (string, error) {
	if err := j.Flush(ctx); err != nil {
		return "", err
	}
	return j.store.SyncToken(ctx, user)
}

// SaveSyncToken writes the token some time: an older one means that messages are read again, which is harmless, unless it is a
// successor's that it replaces.
func (j *Journal) SaveSyncToken(_ context.Context, user id.UserID, token string) error {
	return j.put(write{row: "token " + string(user), put: true, do: j.fenced(func(ctx context.Context, s *Store) error {
		return s.SaveSyncToken(ctx, user, token)
	})}, nil)
}

// fenced lets a write happen only while the journal's owner has its lease: what waited in an outage must not replace what a successor
// has written since.
func (j *Journal) fenced(do func(context.Context, *Store) error) func(context.Context, *Store, int64) error {
	return func(ctx context.Context, s *Store, _ int64) error {
		return s.whileLeased(ctx, j.owner, func(ctx context.Context) error { return do(ctx, s) })
	}
}

// Write does a write of tables that the Store does not know, in a transaction that is in the context do is given. While the database
// is away, or when a write of the same row waits, it is done some time.
func (j *Journal) Write(ctx context.Context, row string, do func(context.Context) error) error {
	fenced := j.fenced(func(ctx context.Context, _ *Store) error { return do(ctx) })
	if !j.Away() && !j.holds(row) {
		attempt, cancel := context.WithTimeout(ctx, attemptPatience)
		err := fenced(attempt, j.store, unnumbered)
		cancel()
		if !isAway(err) {
			return err
		}
		if ctx.Err() == nil {
			j.Report(err)
		}
	}
	return j.put(write{row: row, put: true, do: fenced}, nil)
}

// holds tells whether a write of a row waits.
func (j *Journal) holds(row string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.latest[row] != nil
}

// MarkTransaction is [Store.MarkTransaction]. While the database is away the memory of this process answers: the homeserver
// repeats only what it has sent a short while ago.
func (j *Journal) MarkTransaction(ctx context.Context, txnID string) (fresh bool, err error) {
	if !j.Away() {
		attempt, cancel := context.WithTimeout(ctx, attemptPatience)
		defer cancel()
		fresh, err = j.store.MarkTransaction(attempt, txnID)
		switch {
		case err == nil:
			j.remember(txnID)
			return fresh, nil
		case ctx.Err() != nil, !isAway(err):
			return false, err // not taken, so its repeat must not pass for one
		}
		j.Report(err)
	}
	if !j.remember(txnID) {
		return false, nil
	}
	err = j.put(write{row: "transaction " + txnID, do: func(ctx context.Context, s *Store, _ int64) error {
		_, err := s.MarkTransaction(ctx, txnID)
		return err
	}}, nil)
	if err != nil {
		j.unremember(txnID)
		return false, err
	}
	return true, nil
}

// remember notes a transaction and tells whether it is new to this process.
func (j *Journal) remember(txnID string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if slices.Contains(j.txns, txnID) {
		return false
	}
	if j.txns = append(j.txns, txnID); len(j.txns) > knownTxns {
		j.txns = slices.Delete(j.txns, 0, len(j.txns)-knownTxns)
	}
	return true
}

// unremember undoes remember for a transaction that was not taken after all.
func (j *Journal) unremember(txnID string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if i := slices.Index(j.txns, txnID); i >= 0 {
		j.txns = slices.Delete(j.txns, i, i+1)
	}
}

// isAway tells whether err may pass with time. What the database itself refuses will not: a fault of the statement or of
// its data.
func isAway(err error) bool {
	for _, other := range []error{nil, ErrFenced, ErrNewer, ErrScheme, ErrTaken, sql.ErrNoRows} {
		if errors.Is(err, other) {
			return false
		}
	}
	if _, unreadable := errors.AsType[*pgconn.ParseConfigError](err); unreadable {
		return false
	}
	var p *pgconn.PgError
	if errors.As(err, &p) {
		// 08 connection, 40 conflict, 53 resources, 55 not now, 57 shutting down or starting, 58 system, 25006 a replica,
		// 25P03 we were silent for too long
		return p.Code == "25006" || p.Code == "25P03" || slices.Contains([]string{"08", "40", "53", "55", "57", "58"}, p.Code[:min(2, len(p.Code))])
	}
	var l *sqlite.Error
	if errors.As(err, &l) {
		switch l.Code() & 0xff { // without the extended part
		case sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_TOOBIG:
			return false
		}
		return true
	}
	return true // no answer at all
}

// sleep waits for d, or returns why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
