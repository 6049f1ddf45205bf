INSERT INTO queue (job_id) VALUES (:client_id);
UPDATE queue SET status = 1, claimed_by = :client_id, lease_until = now() + interval '30 s', attempt = attempt + 1, started_at = now() WHERE id = (SELECT id FROM queue WHERE status = 0 AND due_at <= now() ORDER BY due_at, id FOR UPDATE SKIP LOCKED LIMIT 1) RETURNING id \gset claimed_
UPDATE queue SET status = 2, finished_at = now() WHERE id = :claimed_id AND status = 1;
