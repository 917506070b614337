-- How often PINs were guessed, by number, trunk and all: until when that counts. And until when a number counts as one that knows a PIN.

CREATE TABLE pin_budget (
    name  TEXT PRIMARY KEY,
    until BIGINT NOT NULL
);

CREATE INDEX pin_budget_until ON pin_budget (until);
