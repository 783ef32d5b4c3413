-- The mistake of one tenant: a person signed up a second time, with capitals. Migration 6 refuses this tenant until
-- someone has decided which of the two users stays. Run it after seed.sql.
INSERT INTO users (account_id, email, full_name)
SELECT account_id, 'Ada.Lovelace@Example.com', full_name FROM users WHERE email = 'ada.lovelace@example.com';
