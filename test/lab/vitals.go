package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Vitals is what a bridge holds on to. At rest it is the same before and after a call.
type Vitals struct {
	Rows    map[string]int     // per table
	Gauges  map[string]float64 // its own count of what lives
	Sockets int                // UDP: SIP, RTP, WebRTC
	Stacks  []string           // goroutines that run our code or pion's
}

var (
	vitalTables = []string{"leg", "membership"}
	vitalGauges = []string{
		"trunkline_legs", "trunkline_sip_calls", "trunkline_sip_rtp_port_pairs", "trunkline_peers", "trunkline_matrix_ghosts_polling",
		"trunkline_database_writes_waiting",
	}
)

// Vitals looks at the process, its metrics and its database.
func (b *Bridge) Vitals(ctx context.Context) (v Vitals, err error) {
	v = Vitals{Gauges: map[string]float64{}}
	if v.Rows, err = b.rows(ctx); err != nil {
		return v, err
	}
	metrics, err := b.ask(ctx, "/metrics")
	if err != nil {
		return v, err
	}
	for _, name := range vitalGauges {
		v.Gauges[name] = sumOf(metrics, name)
	}
	if v.Sockets, err = udpSockets(b.process.cmd.Process.Pid); err != nil {
		return v, err
	}
	profile, err := b.ask(ctx, "/debug/pprof/goroutine?debug=2")
	for stack := range strings.SplitSeq(profile, "\n\n") {
		ours := strings.Contains(stack, "trunkline/") || strings.Contains(stack, "pion/")
		passing := strings.Contains(stack, "net/http.(*conn).serve") || // the homeserver's or our own question
			strings.Contains(stack, "sip.(*guardedConn).Read") || // a connection with a trunk or phone: as long as they want
			strings.Contains(stack, "sip.(*Call).follow") || // an INVITE of ours, for 32 s, in case the phone repeats its 200 (RFC 3261 §13.2.2.4)
			strings.Contains(stack, "sip.(*Stack).part") // the same of a call that has ended, in case another phone answers, too
		if ours && !passing {
			v.Stacks = append(v.Stacks, stack)
		}
	}
	return v, err
}

// Beyond says what v has more of than a bridge at rest, "" if nothing.
func (v Vitals) Beyond(rest Vitals) string {
	var more []string
	for _, table := range vitalTables {
		if v.Rows[table] > rest.Rows[table] {
			more = append(more, fmt.Sprintf("%d rows in %s", v.Rows[table], table))
		}
	}
	for _, name := range vitalGauges {
		if v.Gauges[name] > rest.Gauges[name] {
			more = append(more, fmt.Sprintf("%s %g", name, v.Gauges[name]))
		}
	}
	if v.Sockets > rest.Sockets {
		more = append(more, fmt.Sprintf("%d UDP sockets, not %d", v.Sockets, rest.Sockets))
	}
	count := map[string]int{}
	for _, stack := range rest.Stacks {
		count[origin(stack)]++
	}
	for _, stack := range v.Stacks {
		if count[origin(stack)]--; count[origin(stack)] < 0 {
			more = append(more, "one more "+stack)
		}
	}
	return strings.Join(more, "; ")
}

// origin is who a goroutine is: the outermost of our functions in it.
func origin(stack string) (name string) {
	for line := range strings.Lines(stack) {
		if strings.HasPrefix(line, "trunkline/") || strings.HasPrefix(line, "github.com/pion/") {
			name, _, _ = strings.Cut(line, "({")
			name, _, _ = strings.Cut(name, "(0x")
		}
	}
	return name
}

// Calls says what rows of calls there are, "" if none.
func (b *Bridge) Calls(ctx context.Context) string {
	rows, err := b.rows(ctx)
	if err != nil {
		return err.Error()
	}
	return Vitals{Rows: rows}.Beyond(Vitals{})
}

func (b *Bridge) rows(ctx context.Context) (map[string]int, error) {
	rows := map[string]int{}
	for _, table := range vitalTables {
		n, err := b.Count(ctx, "SELECT count(*) FROM "+table)
		if err != nil {
			return nil, err
		}
		rows[table] = n
	}
	return rows, nil
}

// Forget ends the bridge as a crash would, removes all rows of calls, and starts it.
func (b *Bridge) Forget(ctx context.Context) error {
	b.Kill()
	err := b.query(ctx, func(conn *pgx.Conn) error {
		for _, table := range vitalTables {
			if _, err := conn.Exec(ctx, "DELETE FROM "+table); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget calls: %w", err)
	}
	return b.Start(ctx)
}

// Count asks the bridge's database a question whose answer is one number.
func (b *Bridge) Count(ctx context.Context, query string, args ...any) (n int, err error) {
	err = b.query(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, query, args...).Scan(&n) })
	if err != nil {
		return 0, fmt.Errorf("%s: %w", query, err)
	}
	return n, nil
}

// query does something in the bridge's database.
func (b *Bridge) query(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, b.lab.Database.URI(databaseName))
	if err != nil {
		return fmt.Errorf("reach the bridge's database: %w", err)
	}
	defer conn.Close(ctx)
	return do(conn)
}

// Metric returns one of the bridge's metrics; of one with labels the sum.
func (b *Bridge) Metric(ctx context.Context, name string) (float64, error) {
	text, err := b.ask(ctx, "/metrics")
	return sumOf(text, name), err
}

func sumOf(metrics, name string) (sum float64) {
	for line := range strings.Lines(metrics) {
		line = strings.TrimSpace(line)
		last := strings.LastIndexByte(line, ' ') // a label's value may have spaces
		if last < 0 {
			continue
		}
		series, value := line[:last], line[last+1:]
		if base, _, _ := strings.Cut(series, "{"); base != name {
			continue
		}
		if x, err := strconv.ParseFloat(value, 64); err == nil {
			sum += x
		}
	}
	return sum
}

// ask gets a page of the bridge's admin side.
func (b *Bridge) ask(ctx context.Context, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.Metrics()+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	return string(text), err
}

// udpSockets counts the UDP sockets of a process.
func udpSockets(pid int) (n int, err error) {
	proc := fmt.Sprintf("/proc/%d/", pid)
	files, err := os.ReadDir(proc + "fd")
	if err != nil {
		return 0, err
	}
	var open []string
	for _, f := range files {
		target, err := os.Readlink(filepath.Join(proc, "fd", f.Name()))
		if inode, ok := strings.CutPrefix(target, "socket:["); ok && err == nil { // it may be closed by now
			open = append(open, strings.TrimSuffix(inode, "]"))
		}
	}
	for _, table := range []string{"udp", "udp6"} {
		content, err := os.ReadFile(proc + "net/" + table)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6 here
		}
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(content)) {
			if fields := strings.Fields(line); len(fields) > 9 && slices.Contains(open, fields[9]) {
				n++
			}
		}
	}
	return n, nil
}
