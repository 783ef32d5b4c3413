ALTER TABLE tasks ADD COLUMN tags text[] NOT NULL DEFAULT '{}';
ALTER TABLE accounts ADD COLUMN settings jsonb NOT NULL DEFAULT '{"digest": "weekly", "labels": []}';

CREATE INDEX tasks_tags ON tasks USING gin (tags);
CREATE INDEX accounts_settings ON accounts USING gin (settings jsonb_path_ops);
