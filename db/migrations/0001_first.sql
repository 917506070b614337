-- What survives a restart. The same SQL runs on PostgreSQL and SQLite; instants are milliseconds since the epoch, 0 = none.

CREATE TABLE ghost (
    user_id    TEXT PRIMARY KEY,
    device_id  TEXT NOT NULL,
    sync_token TEXT NOT NULL DEFAULT ''
);

CREATE TABLE seen_transaction (
    txn_id  TEXT PRIMARY KEY,
    seen_at BIGINT NOT NULL
);

CREATE INDEX seen_transaction_age ON seen_transaction (seen_at);

CREATE TABLE route (
    number     TEXT PRIMARY KEY,
    room       TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE membership (
    ghost         TEXT NOT NULL,
    room_id       TEXT NOT NULL,
    conf_id       TEXT NOT NULL,
    device_id     TEXT NOT NULL,
    session_id    TEXT NOT NULL,
    created_by_us BOOLEAN NOT NULL,
    expires_at    BIGINT NOT NULL,
    leg_id        TEXT NOT NULL,
    owner         TEXT NOT NULL,
    epoch         BIGINT NOT NULL,
    PRIMARY KEY (ghost, room_id)
);

CREATE TABLE leg (
    id          TEXT PRIMARY KEY,
    owner       TEXT NOT NULL,
    epoch       BIGINT NOT NULL,
    phase       TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    answered_at BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,

    -- application: which room, as whom, and where in the conversation with the phone
    direction   TEXT NOT NULL,
    trunk       TEXT NOT NULL,
    dialled     TEXT NOT NULL,
    caller      TEXT NOT NULL,
    caller_name TEXT NOT NULL,
    dialled_by  TEXT NOT NULL,
    room_id     TEXT NOT NULL,
    ghost       TEXT NOT NULL,
    muted       BOOLEAN NOT NULL,
    prompt_step TEXT NOT NULL,
    digits      TEXT NOT NULL,
    end_by      BIGINT NOT NULL,

    -- the phone's dialog with its media, as the sip package describes it to its successor (JSON)
    call_id     TEXT NOT NULL,
    local_tag   TEXT NOT NULL,
    dialog      TEXT NOT NULL
);

CREATE INDEX leg_dialog ON leg (call_id, local_tag);

CREATE TABLE history (
    leg_id      TEXT PRIMARY KEY,
    direction   TEXT NOT NULL,
    trunk       TEXT NOT NULL,
    caller      TEXT NOT NULL,
    dialled     TEXT NOT NULL,
    room_id     TEXT NOT NULL,
    ghost       TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    answered_at BIGINT NOT NULL,
    ended_at    BIGINT NOT NULL,
    cause       TEXT NOT NULL
);

CREATE INDEX history_ended ON history (ended_at);
