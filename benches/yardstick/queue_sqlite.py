"""What SQLite allows at best: the same three statements, each a transaction, WAL and synchronous=FULL.

    python3 queue_sqlite.py FILE SECONDS    prints cycles per second
"""

import sqlite3
import sys
import time

SCHEMA = """
CREATE TABLE IF NOT EXISTS queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, job_id INTEGER NOT NULL, status INTEGER NOT NULL DEFAULT 0,
    due_at INTEGER NOT NULL, claimed_by INTEGER, lease_until INTEGER, attempt INTEGER NOT NULL DEFAULT 0,
    started_at INTEGER, finished_at INTEGER,
    payload TEXT NOT NULL DEFAULT '{"cause": "scheduled", "steps": ["dbt build"]}');
CREATE INDEX IF NOT EXISTS queue_due ON queue (due_at, id) WHERE status = 0;
CREATE INDEX IF NOT EXISTS queue_lease ON queue (lease_until) WHERE status = 1;
"""
CLAIM = """
UPDATE queue SET status = 1, claimed_by = 1, lease_until = ?1 + 30000000, attempt = attempt + 1, started_at = ?1
WHERE id = (SELECT id FROM queue WHERE status = 0 AND due_at <= ?1 ORDER BY due_at, id LIMIT 1) RETURNING id
"""


def main(file, seconds):
    database = sqlite3.connect(file, isolation_level=None)  # every statement is a transaction
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(SCHEMA)
    began = time.perf_counter()
    cycles = 0
    while time.perf_counter() - began < seconds:
        now = time.time_ns() // 1000
        database.execute("INSERT INTO queue (job_id, due_at) VALUES (1, ?)", (now,))
        (claimed,) = database.execute(CLAIM, (now,)).fetchall()[0]
        database.execute("UPDATE queue SET status = 2, finished_at = ? WHERE id = ? AND status = 1", (now, claimed))
        cycles += 1
    print(cycles / (time.perf_counter() - began))


main(sys.argv[1], float(sys.argv[2]))
