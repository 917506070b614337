-- A write that was given up may reach the database all the same, minutes late. Each write of a run has a number, so that it can be told
-- from those that came after it.

ALTER TABLE leg ADD COLUMN version BIGINT NOT NULL DEFAULT 0;

ALTER TABLE membership ADD COLUMN version BIGINT NOT NULL DEFAULT 0;

-- The last write of a run that removed a row: what is older must not bring one back.
CREATE TABLE removal (
    owner   TEXT PRIMARY KEY,
    version BIGINT NOT NULL
);
