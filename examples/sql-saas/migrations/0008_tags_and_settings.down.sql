DROP INDEX accounts_settings;
DROP INDEX tasks_tags;
ALTER TABLE accounts DROP COLUMN settings;
ALTER TABLE tasks DROP COLUMN tags;
