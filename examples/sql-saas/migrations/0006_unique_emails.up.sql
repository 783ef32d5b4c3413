-- Fails (23505) for a tenant in which two users share an address, whatever its capitals. Which of the two stays is for a
-- person to decide, so this migration does not.
CREATE UNIQUE INDEX users_email_key ON users (lower(email));
