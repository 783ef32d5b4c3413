-- no-transaction
-- CONCURRENTLY lets the tenant go on writing, and is why this file holds one statement: several sent together would
-- share a transaction. No IF NOT EXISTS: after a failure that would take the invalid index for the real one.
CREATE INDEX CONCURRENTLY tasks_open_by_due ON tasks (due_on, project_id) WHERE status <> 'done';
