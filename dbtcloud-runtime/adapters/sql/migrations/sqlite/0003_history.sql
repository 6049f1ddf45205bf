-- The oldest schema whose binary still works with the database as this migration leaves it.
ALTER TABLE schema_migrations ADD COLUMN oldest_binary INTEGER NOT NULL DEFAULT 1;

-- The id of a run says its month (YYYYMM * 10^8 + n), on both engines alike. Here nothing is divided by it.
CREATE TABLE run_numbers (
    last INTEGER NOT NULL
) STRICT;
INSERT INTO run_numbers (last) VALUES (0);

-- One run per job and instant. On PostgreSQL outside of the months, or it would not be unique over all of them.
CREATE TABLE run_instants (
    job_id INTEGER NOT NULL,
    scheduled_for INTEGER NOT NULL,
    run_id INTEGER NOT NULL,
    PRIMARY KEY (job_id, scheduled_for)
) STRICT, WITHOUT ROWID;
INSERT INTO run_instants (job_id, scheduled_for, run_id)
    SELECT job_id, scheduled_for, id FROM runs WHERE scheduled_for IS NOT NULL;
CREATE INDEX run_instants_by_run ON run_instants (run_id);
DROP INDEX runs_by_instant;
