package homeserver

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// Error is the standard error answer: https://spec.matrix.org/v1.17/client-server-api/#standard-error-response
type Error struct {
	Status       int    `json:"-"`
	Code         string `json:"errcode"`
	Text         string `json:"error"`
	SoftLogout   *bool  `json:"soft_logout,omitempty"`
	RetryAfterMS int64  `json:"retry_after_ms,omitempty"`
}

func (e *Error) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Text) }

func forbidden(format string, args ...any) *Error {
	return &Error{Status: http.StatusForbidden, Code: "M_FORBIDDEN", Text: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) *Error {
	return &Error{Status: http.StatusNotFound, Code: "M_NOT_FOUND", Text: fmt.Sprintf(format, args...)}
}

func bad(code, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Code: code, Text: fmt.Sprintf(format, args...)}
}

func unrecognized(status int) *Error {
	return &Error{Status: status, Code: "M_UNRECOGNIZED", Text: "Unrecognized request"}
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
