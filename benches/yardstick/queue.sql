-- What PostgreSQL allows at best: the thinnest queue that could still be claimed from by many.
CREATE TABLE queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL,
    status smallint NOT NULL DEFAULT 0, -- 0 queued, 1 claimed, 2 finished
    due_at timestamptz NOT NULL DEFAULT now(),
    claimed_by int,
    lease_until timestamptz,
    attempt int NOT NULL DEFAULT 0,
    started_at timestamptz,
    finished_at timestamptz,
    payload jsonb NOT NULL DEFAULT '{"cause": "scheduled", "steps": ["dbt build"]}'
) WITH (fillfactor = 70);
CREATE INDEX queue_due ON queue (due_at, id) WHERE status = 0;
CREATE INDEX queue_lease ON queue (lease_until) WHERE status = 1;
-- Some that wait already: where every client claims what it has just queued, others may hold all there is for a moment.
INSERT INTO queue (job_id) SELECT n FROM generate_series(1, 1000) AS n;
