-- Since when the logs and artifacts of a run are gone; the run itself stays for longer.
ALTER TABLE runs ADD COLUMN logs_expired_at BIGINT;
ALTER TABLE runs ADD COLUMN artifacts_expired_at BIGINT;

-- Bytes of logs come and go with each run, so the default (a fifth of the table must be dead first) lets a part grow to
-- many times of what it holds. A part of a divided table has settings of its own; later parts are made with them.
DO $$
DECLARE part REGCLASS;
BEGIN
    FOR part IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'log_chunks'::regclass LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_scale_factor = 0.02, '
            'toast.autovacuum_vacuum_scale_factor = 0.02)', part);
    END LOOP;
END $$;
-- Short tables whose every row is written over again and again: cheap to vacuum often, dear to scan when bloated.
ALTER TABLE leases SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 200);
ALTER TABLE schedules SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE tickets SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
ALTER TABLE agent_keys SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 200);
