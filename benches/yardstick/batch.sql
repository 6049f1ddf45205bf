INSERT INTO queue (job_id) SELECT :client_id FROM generate_series(1, 200);
UPDATE queue SET status = 1, claimed_by = :client_id, lease_until = now() + interval '30 s', attempt = attempt + 1, started_at = now() WHERE id IN (SELECT id FROM queue WHERE status = 0 AND due_at <= now() ORDER BY due_at, id FOR UPDATE SKIP LOCKED LIMIT 200);
