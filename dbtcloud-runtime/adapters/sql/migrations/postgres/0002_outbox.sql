-- Which runs of a job one takes the place of when it is queued; nothing for a run that replaces none.
ALTER TABLE run_queue ADD COLUMN line TEXT COLLATE "C";
CREATE INDEX run_queue_line ON run_queue (job_id, line) WHERE line IS NOT NULL;

-- What consumers have still to be told. Written with the journal, deleted on delivery, so it stays short.
CREATE TABLE outbox (
    consumer TEXT COLLATE "C" NOT NULL CHECK (consumer IN ('follow', 'notify', 'lineage')),
    run_id BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    PRIMARY KEY (consumer, run_id, sequence)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_cost_delay = 0);
CREATE INDEX outbox_due ON outbox (consumer, due_at, run_id, sequence);
