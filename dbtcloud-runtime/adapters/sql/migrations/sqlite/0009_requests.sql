-- Requests for runs that may be made again: what each key was used for, and the run that came of it.
CREATE TABLE run_requests (
    account_id INTEGER NOT NULL,
    key BLOB NOT NULL,
    asked BLOB NOT NULL,
    run_id INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (account_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_requests_by_end ON run_requests (until);
