-- Programs that are told of runs.
CREATE TABLE webhooks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id INTEGER NOT NULL,
    project_id INTEGER,
    parent_id INTEGER,
    name TEXT NOT NULL,
    lookup TEXT,
    deleted INTEGER NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX webhooks_by_account ON webhooks (account_id, project_id, id);
CREATE INDEX webhooks_by_parent ON webhooks (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX webhooks_by_lookup ON webhooks (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

-- People who are told how runs ended.
CREATE TABLE notifications (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id INTEGER NOT NULL,
    project_id INTEGER,
    parent_id INTEGER,
    name TEXT NOT NULL,
    lookup TEXT,
    deleted INTEGER NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX notifications_by_account ON notifications (account_id, project_id, id);
CREATE INDEX notifications_by_parent ON notifications (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX notifications_by_lookup ON notifications (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

-- What they are still to be told, and for a time what they were: a row per addressee and event of a run.
CREATE TABLE dispatches (
    channel TEXT NOT NULL CHECK (channel IN ('webhook', 'notification')),
    addressee_id INTEGER NOT NULL,
    run_id INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    part INTEGER NOT NULL,
    account_id INTEGER NOT NULL,
    job_id INTEGER NOT NULL,
    event TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'failed', 'dropped')),
    due_at INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    tried_at INTEGER,
    code INTEGER,
    error TEXT,
    answer TEXT,
    PRIMARY KEY (channel, addressee_id, run_id, sequence, part)
) STRICT, WITHOUT ROWID;
CREATE INDEX dispatches_due ON dispatches (channel, due_at) WHERE state = 'waiting';
CREATE INDEX dispatches_posted ON dispatches (channel, addressee_id, created_at);
CREATE INDEX dispatches_tried ON dispatches (channel, addressee_id, tried_at) WHERE tried_at IS NOT NULL;
CREATE INDEX dispatches_ended ON dispatches (created_at) WHERE state <> 'waiting';
