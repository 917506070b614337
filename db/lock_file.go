package db

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// errBadConn makes database/sql close a connection instead of using it again.
var errBadConn = driver.ErrBadConn

// fileLock is a lock on a file beside a SQLite database; the kernel gives it back when the process ends. The file stays.
type fileLock struct {
	path string
	file *os.File // nil = not held
}

func (f *fileLock) take(context.Context) (bool, error) {
	if f.file != nil {
		return true, nil
	}
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, fmt.Errorf("lock node: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return false, file.Close()
		}
		return false, errors.Join(fmt.Errorf("lock node: %w", err), file.Close())
	}
	f.file = file
	return true, nil
}

func (f *fileLock) release() error {
	file := f.file
	if file == nil {
		return nil
	}
	f.file = nil
	return file.Close()
}

// safeName is name as part of a file's name.
func safeName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '_'
	}, name)
}
