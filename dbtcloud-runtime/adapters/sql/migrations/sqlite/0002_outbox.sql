-- Which runs of a job one takes the place of when it is queued; nothing for a run that replaces none.
ALTER TABLE run_queue ADD COLUMN line TEXT;
CREATE INDEX run_queue_line ON run_queue (job_id, line) WHERE line IS NOT NULL;

-- What consumers have still to be told. Written with the journal, deleted on delivery, so it stays short.
CREATE TABLE outbox (
    consumer TEXT NOT NULL CHECK (consumer IN ('follow', 'notify', 'lineage')),
    run_id INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    PRIMARY KEY (consumer, run_id, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_due ON outbox (consumer, due_at, run_id, sequence);
