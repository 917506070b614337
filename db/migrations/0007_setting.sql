-- What an admin has set while the bridge ran, and the next process must know. A name without a row is not set.

CREATE TABLE setting (
    name       TEXT PRIMARY KEY,
    value      TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);
