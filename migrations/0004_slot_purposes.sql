-- What a slot is taken for: an attempt; a connection that its worker keeps open between two attempts; or a worker's own
-- connections to this very database, where it is on a server with tenants.
alter table herder.slot
    add column purpose text check (purpose in ('attempt', 'kept', 'control')),
    drop constraint taken_whole;
update herder.slot set purpose = 'attempt' where worker is not null;
alter table herder.slot
    add constraint taken_whole check ((worker is null) = (taken_at is null) and (worker is null) = (purpose is null)),
    -- A kept slot still names the attempt that it was taken for: whoever gives it back says which one that was.
    add constraint job_iff_attempt_or_kept check (
        (job_id is null) = (coalesce(purpose, 'control') = 'control') and (job_id is null) = (epoch is null));
-- What a worker has: its claims take the kept ones first, and a lost worker's become suspect.
create index slot_worker on herder.slot (worker) where worker is not null;

-- Who holds the one connection of a server's budget that belongs to no job, and until when it is believed.
alter table herder.server
    add column service_holder text,
    add column service_until  timestamptz,
    add constraint service_whole check ((service_holder is null) = (service_until is null));
