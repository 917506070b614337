-- PINs with which phones come into rooms: a keyed hash of each, never the PIN. A PIN leads to one room.

CREATE TABLE pin (
    sum        TEXT PRIMARY KEY,
    room_id    TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE INDEX pin_room ON pin (room_id);
