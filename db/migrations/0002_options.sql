-- What a route asks for beyond its room, and what a new process needs to go on with a leg: both JSON, read back by their writers only.

ALTER TABLE route ADD COLUMN options TEXT NOT NULL DEFAULT '{}';

ALTER TABLE leg ADD COLUMN options TEXT NOT NULL DEFAULT '{}';

ALTER TABLE leg ADD COLUMN state TEXT NOT NULL DEFAULT '{}';

ALTER TABLE membership ADD COLUMN call_event TEXT NOT NULL DEFAULT '';
