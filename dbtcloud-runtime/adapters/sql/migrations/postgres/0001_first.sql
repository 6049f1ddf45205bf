-- What people edit: one table per kind, all alike. Bodies are JSON that only the domain reads.
CREATE TABLE accounts (
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
CREATE INDEX accounts_by_account ON accounts (account_id, project_id, id);
CREATE INDEX accounts_by_parent ON accounts (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX accounts_by_lookup ON accounts (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE connections (
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
CREATE INDEX connections_by_account ON connections (account_id, project_id, id);
CREATE INDEX connections_by_parent ON connections (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX connections_by_lookup ON connections (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE credentials (
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
CREATE INDEX credentials_by_account ON credentials (account_id, project_id, id);
CREATE INDEX credentials_by_parent ON credentials (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX credentials_by_lookup ON credentials (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE environments (
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
CREATE INDEX environments_by_account ON environments (account_id, project_id, id);
CREATE INDEX environments_by_parent ON environments (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX environments_by_lookup ON environments (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE extended_attributes (
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
CREATE INDEX extended_attributes_by_account ON extended_attributes (account_id, project_id, id);
CREATE INDEX extended_attributes_by_parent ON extended_attributes (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX extended_attributes_by_lookup ON extended_attributes (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE jobs (
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
CREATE INDEX jobs_by_account ON jobs (account_id, project_id, id);
CREATE INDEX jobs_by_parent ON jobs (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX jobs_by_lookup ON jobs (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE projects (
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
CREATE INDEX projects_by_account ON projects (account_id, project_id, id);
CREATE INDEX projects_by_parent ON projects (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX projects_by_lookup ON projects (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE repositories (
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
CREATE INDEX repositories_by_account ON repositories (account_id, project_id, id);
CREATE INDEX repositories_by_parent ON repositories (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX repositories_by_lookup ON repositories (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE tokens (
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
CREATE INDEX tokens_by_account ON tokens (account_id, project_id, id);
CREATE INDEX tokens_by_parent ON tokens (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX tokens_by_lookup ON tokens (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE users (
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
CREATE INDEX users_by_account ON users (account_id, project_id, id);
CREATE INDEX users_by_parent ON users (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX users_by_lookup ON users (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

CREATE TABLE variables (
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
CREATE INDEX variables_by_account ON variables (account_id, project_id, id);
CREATE INDEX variables_by_parent ON variables (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX variables_by_lookup ON variables (lookup) WHERE lookup IS NOT NULL AND NOT deleted;

-- Every run there ever was. What lists filter by has a column; what only the domain reads is JSON.
CREATE TABLE runs (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id BIGINT NOT NULL,
    project_id BIGINT NOT NULL,
    environment_id BIGINT NOT NULL,
    job_id BIGINT NOT NULL,
    cause_body TEXT NOT NULL,
    spec_body TEXT NOT NULL,
    scheduled_for BIGINT,
    exclusive BOOLEAN NOT NULL,
    takes_slot BOOLEAN NOT NULL,
    retry_of BIGINT,
    due_at BIGINT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('queued', 'starting', 'running', 'cancelling', 'success', 'warned', 'error', 'cancelled')),
    attempt BIGINT NOT NULL DEFAULT 0,
    epoch BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    dequeued_at BIGINT,
    started_at BIGINT,
    finished_at BIGINT,
    heartbeat_at BIGINT,
    cancel_requested_at BIGINT,
    git_branch TEXT,
    git_sha TEXT,
    dbt_version TEXT,
    message TEXT,
    artifacts_saved BOOLEAN NOT NULL DEFAULT FALSE,
    has_docs BOOLEAN NOT NULL DEFAULT FALSE,
    has_sources BOOLEAN NOT NULL DEFAULT FALSE,
    last_sequence BIGINT NOT NULL,
    batch_number BIGINT NOT NULL DEFAULT 0,
    ended_by_agent BOOLEAN NOT NULL DEFAULT FALSE
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX runs_by_instant ON runs (job_id, scheduled_for) WHERE scheduled_for IS NOT NULL;
CREATE INDEX runs_by_account ON runs (account_id, id);
CREATE INDEX runs_by_job ON runs (account_id, job_id, id);
CREATE INDEX runs_by_environment ON runs (account_id, environment_id, id);
CREATE INDEX runs_by_created ON runs (account_id, created_at, id);
CREATE INDEX runs_by_finished ON runs (account_id, finished_at, id);

-- One narrow row per run that has not ended, so that queue and claim cost nothing for history. No foreign
-- keys: it is the busiest table. Its row is the lock of its run: taken before the row in runs, always.
CREATE TABLE run_queue (
    run_id BIGINT NOT NULL PRIMARY KEY,
    account_id BIGINT NOT NULL,
    job_id BIGINT NOT NULL,
    exclusive BOOLEAN NOT NULL,
    takes_slot BOOLEAN NOT NULL,
    slot BIGINT CHECK (slot IS NULL OR state <> 'queued'),
    state TEXT NOT NULL CHECK (state IN ('queued', 'starting', 'running', 'cancelling')),
    due_at BIGINT NOT NULL,
    owner TEXT,
    epoch BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    lease_until BIGINT
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_cost_delay = 0);
CREATE INDEX run_queue_due ON run_queue (account_id, due_at, run_id) WHERE state = 'queued';
CREATE INDEX run_queue_live ON run_queue (run_id) WHERE state <> 'queued';
CREATE UNIQUE INDEX run_queue_slot ON run_queue (account_id, slot) WHERE slot IS NOT NULL;
CREATE UNIQUE INDEX run_queue_exclusive ON run_queue (job_id) WHERE exclusive AND state <> 'queued';

CREATE TABLE run_steps (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id BIGINT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    step_index BIGINT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('clone', 'profile', 'deps', 'freshness', 'command', 'docs')),
    status TEXT NOT NULL CHECK (status IN ('pending', 'running', 'success', 'warned', 'error', 'skipped', 'cancelled')),
    started_at BIGINT,
    finished_at BIGINT,
    exit_code BIGINT,
    message TEXT,
    backend TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    log_bytes BIGINT NOT NULL DEFAULT 0,
    log_first BIGINT NOT NULL DEFAULT 0,
    log_object TEXT,
    UNIQUE (run_id, step_index)
);
CREATE INDEX run_steps_unmoved ON run_steps (run_id) WHERE log_bytes > log_first;

-- Appended only. No foreign key: the row in runs is locked by the transaction that appends.
CREATE TABLE log_chunks (
    run_id BIGINT NOT NULL,
    step_index BIGINT NOT NULL,
    start_offset BIGINT NOT NULL,
    length BIGINT NOT NULL CHECK (length > 0),
    bytes BYTEA NOT NULL,
    PRIMARY KEY (run_id, step_index, start_offset)
);
-- Log bytes are neither compressed nor kept inline: cheap to write, and a range is read without the rest.
ALTER TABLE log_chunks ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- Appended only; the sequence is counted in runs, under that row's lock, so a reader never sees a gap close.
CREATE TABLE journal (
    run_id BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    account_id BIGINT NOT NULL,
    at BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run_id, sequence)
);

CREATE TABLE schedules (
    job_id BIGINT NOT NULL PRIMARY KEY,
    account_id BIGINT NOT NULL,
    job_version BIGINT NOT NULL,
    next_at BIGINT,
    updated_at BIGINT NOT NULL
);
CREATE INDEX schedules_due ON schedules (next_at, job_id) WHERE next_at IS NOT NULL;

CREATE TABLE sessions (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id BIGINT NOT NULL,
    project_id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('starting', 'running', 'suspending', 'suspended', 'closed', 'failed')),
    generation BIGINT NOT NULL,
    address TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    active_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX sessions_open ON sessions (account_id, project_id, user_id) WHERE status NOT IN ('closed', 'failed');
CREATE INDEX sessions_by_status ON sessions (status, id);

CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    term BIGINT NOT NULL,
    held_until BIGINT
);

-- Digests only: neither a ticket nor a key is ever stored in plain.
CREATE TABLE tickets (
    ticket BYTEA NOT NULL PRIMARY KEY,
    account_id BIGINT NOT NULL,
    run_id BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX tickets_by_run ON tickets (run_id, attempt);

CREATE TABLE agent_keys (
    run_id BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    account_id BIGINT NOT NULL,
    key BYTEA NOT NULL UNIQUE,
    PRIMARY KEY (run_id, attempt)
);
