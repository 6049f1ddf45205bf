-- Programs that are told of runs.
CREATE TABLE webhooks (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id BIGINT NOT NULL,
    project_id BIGINT,
    parent_id BIGINT,
    name TEXT COLLATE "C" NOT NULL,
    lookup TEXT COLLATE "C",
    deleted BOOLEAN NOT NULL,
    version BIGINT NOT NULL CHECK (version > 0),
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX webhooks_by_account ON webhooks (account_id, project_id, id);
CREATE INDEX webhooks_by_parent ON webhooks (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX webhooks_by_lookup ON webhooks (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

-- People who are told how runs ended.
CREATE TABLE notifications (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id BIGINT NOT NULL,
    project_id BIGINT,
    parent_id BIGINT,
    name TEXT COLLATE "C" NOT NULL,
    lookup TEXT COLLATE "C",
    deleted BOOLEAN NOT NULL,
    version BIGINT NOT NULL CHECK (version > 0),
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX notifications_by_account ON notifications (account_id, project_id, id);
CREATE INDEX notifications_by_parent ON notifications (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX notifications_by_lookup ON notifications (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

-- What they are still to be told, and for a time what they were: a row per addressee and event of a run.
CREATE TABLE dispatches (
    channel TEXT COLLATE "C" NOT NULL CHECK (channel IN ('webhook', 'notification')),
    addressee_id BIGINT NOT NULL,
    run_id BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    part BIGINT NOT NULL,
    account_id BIGINT NOT NULL,
    job_id BIGINT NOT NULL,
    event TEXT COLLATE "C" NOT NULL,
    body TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('waiting', 'delivered', 'failed', 'dropped')),
    due_at BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    tried_at BIGINT,
    code BIGINT,
    error TEXT,
    answer TEXT,
    PRIMARY KEY (channel, addressee_id, run_id, sequence, part)
);
CREATE INDEX dispatches_due ON dispatches (channel, due_at) WHERE state = 'waiting';
CREATE INDEX dispatches_posted ON dispatches (channel, addressee_id, created_at);
CREATE INDEX dispatches_tried ON dispatches (channel, addressee_id, tried_at) WHERE tried_at IS NOT NULL;
CREATE INDEX dispatches_ended ON dispatches (created_at) WHERE state <> 'waiting';
