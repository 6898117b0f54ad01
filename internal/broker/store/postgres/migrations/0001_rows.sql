CREATE TABLE sesame_rows (
	space text NOT NULL COLLATE "C",
	key   bytea NOT NULL,
	value bytea NOT NULL,
	PRIMARY KEY (space, key)
);
