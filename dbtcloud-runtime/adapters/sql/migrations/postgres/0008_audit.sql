-- Who changed what. Written by the transaction of the change.
CREATE TABLE audit (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id BIGINT NOT NULL,
    at BIGINT NOT NULL,
    actor TEXT COLLATE "C" NOT NULL CHECK (actor IN ('system', 'operator', 'user', 'service')),
    actor_id BIGINT,
    actor_name TEXT NOT NULL,
    action TEXT COLLATE "C" NOT NULL CHECK (action IN ('added', 'changed', 'removed', 'triggered', 'cancelled')),
    subject TEXT COLLATE "C" NOT NULL,
    subject_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    project_id BIGINT
);
CREATE INDEX audit_by_account ON audit (account_id, at, id);
