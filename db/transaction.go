package db

import (
	"context"
	"fmt"
	"time"
)

// keepTransactions is how long a homeserver's transaction id is remembered: far longer than any retry, which stops
// growing at 512 s.
const keepTransactions = 7 * 24 * time.Hour

// MarkTransaction records the homeserver's transaction id and tells whether it is new.
func (s *Store) MarkTransaction(ctx context.Context, txnID string) (fresh bool, err error) {
	result, err := s.db.Exec(ctx, `INSERT INTO seen_transaction (txn_id, seen_at) VALUES ($1, $2)
		ON CONFLICT (txn_id) DO NOTHING`, txnID, millis(time.Now()))
	if err != nil {
		return false, fmt.Errorf("record transaction: %w", err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return false, fmt.Errorf("record transaction: %w", err)
	}
	return n > 0, nil
}

// Forget removes the lines of history and of usage older than keepHistory, and transaction ids that no homeserver would repeat.
func (s *Store) Forget(ctx context.Context, keepHistory, now time.Time) error {
	if _, err := s.db.Exec(ctx, "DELETE FROM seen_transaction WHERE seen_at < $1", millis(now.Add(-keepTransactions))); err != nil {
		return fmt.Errorf("forget transactions: %w", err)
	}
	if _, err := s.db.Exec(ctx, "DELETE FROM history WHERE ended_at < $1", millis(keepHistory)); err != nil {
		return fmt.Errorf("forget history: %w", err)
	}
	if _, err := s.db.Exec(ctx, "DELETE FROM usage WHERE running = 0 AND day < $1", keepHistory.Format(time.DateOnly)); err != nil {
		return fmt.Errorf("forget usage: %w", err)
	}
	if _, err := s.db.Exec(ctx, "DELETE FROM pin_budget WHERE until < $1", millis(now)); err != nil {
		return fmt.Errorf("forget who guessed PINs: %w", err)
	}
	if _, err := s.db.Exec(ctx, "DELETE FROM removal WHERE owner NOT IN (SELECT owner FROM lease)"); err != nil {
		return fmt.Errorf("forget removals: %w", err)
	}
	return nil
}
