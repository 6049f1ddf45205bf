-- Since when the logs and artifacts of a run are gone; the run itself stays for longer.
ALTER TABLE runs ADD COLUMN logs_expired_at INTEGER;
ALTER TABLE runs ADD COLUMN artifacts_expired_at INTEGER;
