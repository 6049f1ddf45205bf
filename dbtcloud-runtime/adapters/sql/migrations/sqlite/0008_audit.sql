-- Who changed what. Written by the transaction of the change.
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL CHECK (actor IN ('system', 'operator', 'user', 'service')),
    actor_id INTEGER,
    actor_name TEXT NOT NULL,
    action TEXT NOT NULL CHECK (action IN ('added', 'changed', 'removed', 'triggered', 'cancelled')),
    subject TEXT NOT NULL,
    subject_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    project_id INTEGER
) STRICT;
CREATE INDEX audit_by_account ON audit (account_id, at, id);
