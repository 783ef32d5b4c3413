DROP TRIGGER tasks_touch ON tasks;
DROP FUNCTION touch_updated_at();
ALTER TABLE tasks DROP COLUMN updated_at;
