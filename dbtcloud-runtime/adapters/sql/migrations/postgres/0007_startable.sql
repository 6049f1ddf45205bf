-- What may start is looked for apart by whether it takes a slot: those that do not stand behind no long line of the
-- others. Versions before this one read the same table by the prefix.
CREATE INDEX run_queue_startable ON run_queue (account_id, takes_slot, due_at, run_id) WHERE state = 'queued';
DROP INDEX run_queue_due;
