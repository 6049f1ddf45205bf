-- What PostgreSQL allows at best: a clock hand per job, and the thinnest queue.
CREATE TABLE schedules (job_id bigint PRIMARY KEY, next_at timestamptz);
CREATE INDEX schedules_due ON schedules (next_at, job_id);
INSERT INTO schedules SELECT n, now() + interval '1 h' FROM generate_series(1, 1000000) AS n;
CREATE TABLE queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL,
    due_at timestamptz NOT NULL,
    payload jsonb NOT NULL DEFAULT '{"cause": "scheduled", "steps": ["dbt build"]}',
    UNIQUE (job_id, due_at)
);
