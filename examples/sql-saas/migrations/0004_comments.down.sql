ALTER TABLE users
    DROP COLUMN is_admin,
    DROP COLUMN locale,
    DROP COLUMN timezone;

DROP TABLE comments;
