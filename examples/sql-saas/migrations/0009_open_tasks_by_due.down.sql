-- no-transaction
DROP INDEX CONCURRENTLY tasks_open_by_due;
