-- Which process runs live. A run without a lease owns nothing: what it writes is refused. Instants are the database's own clock.

CREATE TABLE lease (
    owner       TEXT PRIMARY KEY,
    node        TEXT NOT NULL,
    since       BIGINT NOT NULL, -- since when it was never late
    lease_until BIGINT NOT NULL
);
