CREATE TABLE accounts (
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
CREATE TABLE agent_keys (
    run_id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    account_id INTEGER NOT NULL,
    key BLOB NOT NULL UNIQUE,
    PRIMARY KEY (run_id, attempt)
) STRICT;
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
CREATE TABLE connections (
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
CREATE TABLE credentials (
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
CREATE TABLE environments (
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
CREATE TABLE extended_attributes (
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
CREATE TABLE jobs (
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
CREATE TABLE journal (
    run_id INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    account_id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run_id, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    term INTEGER NOT NULL,
    held_until INTEGER
) STRICT;
CREATE TABLE log_chunks (
    run_id INTEGER NOT NULL,
    step_index INTEGER NOT NULL,
    start_offset INTEGER NOT NULL,
    length INTEGER NOT NULL CHECK (length > 0),
    bytes BLOB NOT NULL,
    PRIMARY KEY (run_id, step_index, start_offset)
) STRICT;
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
CREATE TABLE outbox (
    consumer TEXT NOT NULL CHECK (consumer IN ('follow', 'notify', 'lineage')),
    run_id INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    PRIMARY KEY (consumer, run_id, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE projects (
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
CREATE TABLE repositories (
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
CREATE TABLE run_instants (
    job_id INTEGER NOT NULL,
    scheduled_for INTEGER NOT NULL,
    run_id INTEGER NOT NULL,
    PRIMARY KEY (job_id, scheduled_for)
) STRICT, WITHOUT ROWID;
CREATE TABLE run_numbers (
    last INTEGER NOT NULL
) STRICT;
CREATE TABLE run_queue (
    run_id INTEGER NOT NULL PRIMARY KEY,
    account_id INTEGER NOT NULL,
    job_id INTEGER NOT NULL,
    exclusive INTEGER NOT NULL,
    takes_slot INTEGER NOT NULL,
    slot INTEGER CHECK (slot IS NULL OR state <> 'queued'),
    state TEXT NOT NULL CHECK (state IN ('queued', 'starting', 'running', 'cancelling')),
    due_at INTEGER NOT NULL,
    owner TEXT,
    epoch INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    lease_until INTEGER
, line TEXT) STRICT;
CREATE TABLE run_requests (
    account_id INTEGER NOT NULL,
    key BLOB NOT NULL,
    asked BLOB NOT NULL,
    run_id INTEGER NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (account_id, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE run_steps (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    step_index INTEGER NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('clone', 'profile', 'deps', 'freshness', 'command', 'docs')),
    status TEXT NOT NULL CHECK (status IN ('pending', 'running', 'success', 'warned', 'error', 'skipped', 'cancelled')),
    started_at INTEGER,
    finished_at INTEGER,
    exit_code INTEGER,
    message TEXT,
    backend TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    log_bytes INTEGER NOT NULL DEFAULT 0,
    log_first INTEGER NOT NULL DEFAULT 0,
    log_object TEXT, log_parts TEXT,
    UNIQUE (run_id, step_index)
) STRICT;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id INTEGER NOT NULL,
    project_id INTEGER NOT NULL,
    environment_id INTEGER NOT NULL,
    job_id INTEGER NOT NULL,
    cause_body TEXT NOT NULL,
    spec_body TEXT NOT NULL,
    scheduled_for INTEGER,
    exclusive INTEGER NOT NULL,
    takes_slot INTEGER NOT NULL,
    retry_of INTEGER,
    due_at INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('queued', 'starting', 'running', 'cancelling', 'success', 'warned', 'error', 'cancelled')),
    attempt INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    dequeued_at INTEGER,
    started_at INTEGER,
    finished_at INTEGER,
    heartbeat_at INTEGER,
    cancel_requested_at INTEGER,
    git_branch TEXT,
    git_sha TEXT,
    dbt_version TEXT,
    message TEXT,
    artifacts_saved INTEGER NOT NULL DEFAULT 0,
    has_docs INTEGER NOT NULL DEFAULT 0,
    has_sources INTEGER NOT NULL DEFAULT 0,
    last_sequence INTEGER NOT NULL,
    batch_number INTEGER NOT NULL DEFAULT 0,
    ended_by_agent INTEGER NOT NULL DEFAULT 0
, logs_expired_at INTEGER, artifacts_expired_at INTEGER) STRICT;
CREATE TABLE schedules (
    job_id INTEGER NOT NULL PRIMARY KEY,
    account_id INTEGER NOT NULL,
    job_version INTEGER NOT NULL,
    next_at INTEGER,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE TABLE schema_migrations (number BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, oldest_binary INTEGER NOT NULL DEFAULT 1);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id INTEGER NOT NULL,
    project_id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('starting', 'running', 'suspending', 'suspended', 'closed', 'failed')),
    generation INTEGER NOT NULL,
    address TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    active_at INTEGER NOT NULL
) STRICT;
CREATE TABLE tickets (
    ticket BLOB NOT NULL PRIMARY KEY,
    account_id INTEGER NOT NULL,
    run_id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE TABLE tokens (
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
CREATE TABLE users (
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
CREATE TABLE variables (
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
CREATE INDEX accounts_by_account ON accounts (account_id, project_id, id);
CREATE UNIQUE INDEX accounts_by_lookup ON accounts (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX accounts_by_parent ON accounts (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX audit_by_account ON audit (account_id, at, id);
CREATE INDEX connections_by_account ON connections (account_id, project_id, id);
CREATE UNIQUE INDEX connections_by_lookup ON connections (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX connections_by_parent ON connections (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX credentials_by_account ON credentials (account_id, project_id, id);
CREATE UNIQUE INDEX credentials_by_lookup ON credentials (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX credentials_by_parent ON credentials (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX dispatches_due ON dispatches (channel, due_at) WHERE state = 'waiting';
CREATE INDEX dispatches_ended ON dispatches (created_at) WHERE state <> 'waiting';
CREATE INDEX dispatches_posted ON dispatches (channel, addressee_id, created_at);
CREATE INDEX dispatches_tried ON dispatches (channel, addressee_id, tried_at) WHERE tried_at IS NOT NULL;
CREATE INDEX environments_by_account ON environments (account_id, project_id, id);
CREATE UNIQUE INDEX environments_by_lookup ON environments (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX environments_by_parent ON environments (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX extended_attributes_by_account ON extended_attributes (account_id, project_id, id);
CREATE UNIQUE INDEX extended_attributes_by_lookup ON extended_attributes (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX extended_attributes_by_parent ON extended_attributes (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX jobs_by_account ON jobs (account_id, project_id, id);
CREATE UNIQUE INDEX jobs_by_lookup ON jobs (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX jobs_by_parent ON jobs (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX notifications_by_account ON notifications (account_id, project_id, id);
CREATE UNIQUE INDEX notifications_by_lookup ON notifications (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX notifications_by_parent ON notifications (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX outbox_due ON outbox (consumer, due_at, run_id, sequence);
CREATE INDEX projects_by_account ON projects (account_id, project_id, id);
CREATE UNIQUE INDEX projects_by_lookup ON projects (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX projects_by_parent ON projects (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX repositories_by_account ON repositories (account_id, project_id, id);
CREATE UNIQUE INDEX repositories_by_lookup ON repositories (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX repositories_by_parent ON repositories (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX run_instants_by_run ON run_instants (run_id);
CREATE UNIQUE INDEX run_queue_exclusive ON run_queue (job_id) WHERE exclusive AND state <> 'queued';
CREATE INDEX run_queue_line ON run_queue (job_id, line) WHERE line IS NOT NULL;
CREATE INDEX run_queue_live ON run_queue (run_id) WHERE state <> 'queued';
CREATE UNIQUE INDEX run_queue_slot ON run_queue (account_id, slot) WHERE slot IS NOT NULL;
CREATE INDEX run_queue_startable ON run_queue (account_id, takes_slot, due_at, run_id) WHERE state = 'queued';
CREATE INDEX run_requests_by_end ON run_requests (until);
CREATE INDEX run_steps_unmoved ON run_steps (run_id) WHERE log_bytes > log_first;
CREATE INDEX runs_by_account ON runs (account_id, id);
CREATE INDEX runs_by_created ON runs (account_id, created_at, id);
CREATE INDEX runs_by_environment ON runs (account_id, environment_id, id);
CREATE INDEX runs_by_finished ON runs (account_id, finished_at, id);
CREATE INDEX runs_by_job ON runs (account_id, job_id, id);
CREATE INDEX schedules_due ON schedules (next_at, job_id) WHERE next_at IS NOT NULL;
CREATE INDEX sessions_by_status ON sessions (status, id);
CREATE UNIQUE INDEX sessions_open ON sessions (account_id, project_id, user_id) WHERE status NOT IN ('closed', 'failed');
CREATE INDEX tickets_by_run ON tickets (run_id, attempt);
CREATE INDEX tokens_by_account ON tokens (account_id, project_id, id);
CREATE UNIQUE INDEX tokens_by_lookup ON tokens (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX tokens_by_parent ON tokens (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX users_by_account ON users (account_id, project_id, id);
CREATE UNIQUE INDEX users_by_lookup ON users (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX users_by_parent ON users (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX variables_by_account ON variables (account_id, project_id, id);
CREATE UNIQUE INDEX variables_by_lookup ON variables (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX variables_by_parent ON variables (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX webhooks_by_account ON webhooks (account_id, project_id, id);
CREATE UNIQUE INDEX webhooks_by_lookup ON webhooks (lookup) WHERE lookup IS NOT NULL AND NOT deleted;
CREATE INDEX webhooks_by_parent ON webhooks (parent_id) WHERE parent_id IS NOT NULL;
