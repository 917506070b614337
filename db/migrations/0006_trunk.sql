-- Trunks beside those of the config: the same options, as a JSON object. They hold passwords in clear, as the config does.

CREATE TABLE trunk (
    name       TEXT PRIMARY KEY,
    settings   TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
