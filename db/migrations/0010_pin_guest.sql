-- A number that has entered a right PIN is known by the room of that, and counts with others that are.

ALTER TABLE pin_budget ADD COLUMN room TEXT NOT NULL DEFAULT '';

DELETE FROM pin_budget WHERE name LIKE 'known %';

CREATE INDEX pin_budget_room ON pin_budget (room);
