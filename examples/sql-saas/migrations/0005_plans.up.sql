-- The labels hold what breaks tools that split or format SQL themselves: quotes, semicolons, percent signs, dollars,
-- comment marks, colons, a backslash, a brace.
CREATE TABLE plans (
    id smallint PRIMARY KEY,
    code varchar(32) NOT NULL UNIQUE,
    label varchar(64) NOT NULL,
    monthly_cents integer NOT NULL CHECK (monthly_cents >= 0)
);

INSERT INTO plans (id, code, label, monthly_cents) VALUES
    (1, 'free', 'Free; no card needed -- ever', 0),
    (2, 'team', E'Team\\Group: $1 & %s {per} seat', 1900),
    (3, 'biz', 'Business, it''s "big" /* really */', 4900),
    (4, 'ent', $label$Enterprise: 100% uptime; 'yes', $$99$$ café :tenant$label$, 19900);

-- Every account gets a plan before the column may demand one.
ALTER TABLE accounts ADD COLUMN plan_id smallint REFERENCES plans (id);
UPDATE accounts SET plan_id = (SELECT id FROM plans WHERE code = 'free');
ALTER TABLE accounts ALTER COLUMN plan_id SET NOT NULL;
