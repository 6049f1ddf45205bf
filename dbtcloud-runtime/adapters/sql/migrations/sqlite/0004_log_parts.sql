-- Where the parts of a step's log end that are in the artifact store: a JSON list, as a step's log may be moved
-- while it grows. Versions before this one leave it NULL and name the whole log in log_object.
ALTER TABLE run_steps ADD COLUMN log_parts TEXT;
