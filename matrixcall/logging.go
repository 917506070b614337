package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/pion/logging"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/id"
)

// userName is a user id as a log may show it: people's localparts can be
// telephone numbers, so long runs of digits keep only their end.
type userName id.UserID

// String implements fmt.Stringer.
func (u userName) String() string { return hideDigits(string(u)) }

// LogValue implements slog.LogValuer.
func (u userName) LogValue() slog.Value { return slog.StringValue(u.String()) }

var longDigits = regexp.MustCompile(`\d{6,}`)

// hideDigits shortens every run of six or more digits to its last three.
func hideDigits(s string) string {
	return longDigits.ReplaceAllStringFunc(s, func(run string) string { return "…" + run[len(run)-3:] })
}

// maxNote is how much of a text that a peer may have written goes into a log.
const maxNote = 200

// addressPattern finds IP addresses: a peer's description names all of its own.
var addressPattern = regexp.MustCompile(`\d{1,3}(\.\d{1,3}){3}|[0-9a-fA-F]{0,4}(:[0-9a-fA-F]{0,4}){3,}`)

// tame is a text that may quote what a peer sent, as a log may show it.
func tame(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, addressPattern.ReplaceAllString(text, "…"))
	if runes := []rune(text); len(runes) > maxNote {
		text = string(runes[:maxNote]) + "…"
	}
	return hideDigits(text)
}

// urlPattern finds the addresses net/http puts into its errors. Their query
// names the ghost.
var urlPattern = regexp.MustCompile(`(Get|Put|Post|Delete) "[^"]*": `)

// tidy makes an error of a request fit for logs: without address and number.
// What it is does not change.
func tidy(err error) error {
	var room *RoomError
	var rights *RightsError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &room), errors.As(err, &rights):
		return err // fit to be read as they are
	}
	return tidied{err}
}

type tidied struct{ error }

func (t tidied) Error() string { return hideDigits(urlPattern.ReplaceAllString(t.error.Error(), "")) }
func (t tidied) Unwrap() error { return t.error }

// quietFields are what mautrix and net/http log that may carry a user id in a
// query string, message content or a token.
var quietFields = map[string]bool{
	zerolog.LevelFieldName: true, zerolog.MessageFieldName: true, zerolog.TimestampFieldName: true,
	"url": true, "body": true, "headers": true, "ciphertext": true, "request_body": true,
	"session_description": true, "olm_session_description": true,
}

// zerologTo makes a zerolog.Logger for mautrix whose warnings and errors end
// up in log as lines of the given level: what mautrix calls an error (an
// undecryptable message, say) is something the bridge copes with. Its debug
// lines are about its own inside and are not passed on.
func zerologTo(log *slog.Logger, level slog.Level) zerolog.Logger {
	return zerolog.New(slogWriter{log, level}).Level(zerolog.WarnLevel)
}

type slogWriter struct {
	log   *slog.Logger
	level slog.Level
}

// Write implements io.Writer; zerolog uses WriteLevel instead.
func (w slogWriter) Write(line []byte) (int, error) { return w.WriteLevel(zerolog.WarnLevel, line) }

// WriteLevel implements zerolog.LevelWriter.
func (w slogWriter) WriteLevel(_ zerolog.Level, line []byte) (int, error) {
	if !w.log.Enabled(context.Background(), w.level) {
		return len(line), nil
	}
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		return len(line), nil
	}
	message, _ := fields[zerolog.MessageFieldName].(string)
	attrs := make([]slog.Attr, 0, len(fields)+1)
	attrs = append(attrs, slog.String("what", message))
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if !quietFields[key] {
			attrs = append(attrs, slog.String(key, hideDigits(urlPattern.ReplaceAllString(fmt.Sprint(fields[key]), ""))))
		}
	}
	w.log.LogAttrs(context.Background(), w.level, "mautrix", attrs...)
	return len(line), nil
}

// pionLoggers gives pion's packages loggers that write to log: their errors
// and warnings as debug lines (pion calls every lost peer an error), nothing
// below that.
type pionLoggers struct{ log *slog.Logger }

// NewLogger implements logging.LoggerFactory.
func (p pionLoggers) NewLogger(scope string) logging.LeveledLogger {
	return pionLogger{p.log.With("scope", scope)}
}

type pionLogger struct{ log *slog.Logger }

func (pionLogger) Trace(string)          {}
func (pionLogger) Tracef(string, ...any) {}
func (pionLogger) Debug(string)          {}
func (pionLogger) Debugf(string, ...any) {}
func (pionLogger) Info(string)           {}
func (pionLogger) Infof(string, ...any)  {}

func (l pionLogger) Warn(msg string) { l.log.Debug("pion", "what", msg) }
func (l pionLogger) Warnf(format string, args ...any) {
	l.log.Debug("pion", "what", fmt.Sprintf(format, args...))
}
func (l pionLogger) Error(msg string) { l.log.Debug("pion", "what", msg) }
func (l pionLogger) Errorf(format string, args ...any) {
	l.log.Debug("pion", "what", fmt.Sprintf(format, args...))
}
