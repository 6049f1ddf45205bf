-- Requests for runs that may be made again: what each key was used for, and the run that came of it.
CREATE TABLE run_requests (
    account_id BIGINT NOT NULL,
    key BYTEA NOT NULL,
    asked BYTEA NOT NULL,
    run_id BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (account_id, key)
);
CREATE INDEX run_requests_by_end ON run_requests (until);
