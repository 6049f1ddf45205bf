-- The oldest schema whose binary still works with the database as this migration leaves it.
ALTER TABLE schema_migrations ADD COLUMN oldest_binary BIGINT NOT NULL DEFAULT 1;

-- History is divided by month: the id of a run says its month (YYYYMM * 10^8 + n), and whatever hangs on a
-- run is filed under the run's id. Months are made ahead by `prepare`. What is older than this rule becomes
-- the part `_before` as it is; what no part expects is caught by `_default`, and sorted when its month is made.
CREATE SEQUENCE run_numbers;

-- One run per job and instant. Outside of the months, or it would not be unique over all of them.
CREATE TABLE run_instants (
    job_id BIGINT NOT NULL,
    scheduled_for BIGINT NOT NULL,
    run_id BIGINT NOT NULL,
    PRIMARY KEY (job_id, scheduled_for)
);
INSERT INTO run_instants (job_id, scheduled_for, run_id)
    SELECT job_id, scheduled_for, id FROM runs WHERE scheduled_for IS NOT NULL;
CREATE INDEX run_instants_by_run ON run_instants (run_id);

ALTER TABLE run_steps DROP CONSTRAINT run_steps_run_id_fkey;

ALTER TABLE runs RENAME TO runs_before;
ALTER TABLE runs_before ALTER COLUMN id DROP IDENTITY;
DROP INDEX runs_by_instant;
ALTER INDEX runs_pkey RENAME TO runs_before_pkey;
ALTER INDEX runs_by_account RENAME TO runs_before_by_account;
ALTER INDEX runs_by_job RENAME TO runs_before_by_job;
ALTER INDEX runs_by_environment RENAME TO runs_before_by_environment;
ALTER INDEX runs_by_created RENAME TO runs_before_by_created;
ALTER INDEX runs_by_finished RENAME TO runs_before_by_finished;
CREATE TABLE runs (LIKE runs_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE) PARTITION BY RANGE (id);
ALTER TABLE runs ADD CONSTRAINT runs_pkey PRIMARY KEY (id);
CREATE INDEX runs_by_account ON runs (account_id, id);
CREATE INDEX runs_by_job ON runs (account_id, job_id, id);
CREATE INDEX runs_by_environment ON runs (account_id, environment_id, id);
CREATE INDEX runs_by_created ON runs (account_id, created_at, id);
CREATE INDEX runs_by_finished ON runs (account_id, finished_at, id);
ALTER TABLE runs ATTACH PARTITION runs_before FOR VALUES FROM (MINVALUE) TO (20000000000000);
CREATE TABLE runs_default PARTITION OF runs DEFAULT WITH (fillfactor = 80);

-- A primary key over all months would have to hold the run: the number of a step is unique by its sequence.
CREATE SEQUENCE step_numbers;
SELECT setval('step_numbers', coalesce(max(id), 0) + 1, FALSE) FROM run_steps;
ALTER TABLE run_steps RENAME TO run_steps_before;
ALTER TABLE run_steps_before ALTER COLUMN id DROP IDENTITY;
ALTER TABLE run_steps_before DROP CONSTRAINT run_steps_pkey;
ALTER INDEX run_steps_run_id_step_index_key RENAME TO run_steps_before_run_id_step_index_key;
ALTER INDEX run_steps_unmoved RENAME TO run_steps_before_unmoved;
CREATE TABLE run_steps (LIKE run_steps_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE) PARTITION BY RANGE (run_id);
ALTER TABLE run_steps ALTER COLUMN id SET DEFAULT nextval('step_numbers');
ALTER SEQUENCE step_numbers OWNED BY run_steps.id;
ALTER TABLE run_steps ADD CONSTRAINT run_steps_run_id_step_index_key UNIQUE (run_id, step_index);
CREATE INDEX run_steps_id_key ON run_steps (id);
CREATE INDEX run_steps_unmoved ON run_steps (run_id) WHERE log_bytes > log_first;
ALTER TABLE run_steps ATTACH PARTITION run_steps_before FOR VALUES FROM (MINVALUE) TO (20000000000000);
CREATE TABLE run_steps_default PARTITION OF run_steps DEFAULT;

ALTER TABLE log_chunks RENAME TO log_chunks_before;
ALTER INDEX log_chunks_pkey RENAME TO log_chunks_before_pkey;
CREATE TABLE log_chunks (LIKE log_chunks_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE) PARTITION BY RANGE (run_id);
ALTER TABLE log_chunks ADD CONSTRAINT log_chunks_pkey PRIMARY KEY (run_id, step_index, start_offset);
ALTER TABLE log_chunks ATTACH PARTITION log_chunks_before FOR VALUES FROM (MINVALUE) TO (20000000000000);
CREATE TABLE log_chunks_default PARTITION OF log_chunks DEFAULT;

ALTER TABLE journal RENAME TO journal_before;
ALTER INDEX journal_pkey RENAME TO journal_before_pkey;
CREATE TABLE journal (LIKE journal_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE) PARTITION BY RANGE (run_id);
ALTER TABLE journal ADD CONSTRAINT journal_pkey PRIMARY KEY (run_id, sequence);
ALTER TABLE journal ATTACH PARTITION journal_before FOR VALUES FROM (MINVALUE) TO (20000000000000);
CREATE TABLE journal_default PARTITION OF journal DEFAULT;
