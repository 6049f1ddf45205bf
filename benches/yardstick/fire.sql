WITH due AS (SELECT job_id, next_at FROM schedules WHERE next_at <= now() ORDER BY next_at, job_id LIMIT 1000 FOR UPDATE SKIP LOCKED),
moved AS (UPDATE schedules s SET next_at = due.next_at + interval '1 h' FROM due WHERE s.job_id = due.job_id)
INSERT INTO queue (job_id, due_at) SELECT job_id, next_at FROM due ON CONFLICT DO NOTHING
