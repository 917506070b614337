-- What calls from rooms have used, and may use: each call counts for its user, its room, its trunk, and all, on the day it began on.

CREATE TABLE usage (
    day      TEXT NOT NULL, -- 2026-11-22, in the bridge's time zone
    scope    TEXT NOT NULL,
    name     TEXT NOT NULL,
    calls    BIGINT NOT NULL,
    talked   BIGINT NOT NULL, -- milliseconds, of calls that are over
    running  BIGINT NOT NULL,
    reserved BIGINT NOT NULL, -- milliseconds that running calls may still use
    PRIMARY KEY (day, scope, name)
);

CREATE INDEX usage_running ON usage (scope, name, running);

-- On which day, and with how much, a leg is counted there; it is taken out when its row goes. No day: it is not counted.
ALTER TABLE leg ADD COLUMN usage_day TEXT NOT NULL DEFAULT '';

ALTER TABLE leg ADD COLUMN reserved BIGINT NOT NULL DEFAULT 0;
