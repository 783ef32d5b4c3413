-- A job's delivery has an id as apalis makes them, of 26 characters, and is found by it.
create function herder.delivery_id(job bigint) returns text
    language sql immutable parallel safe
    as $$ select lpad(to_hex(job), 26, '0') $$;
