-- Whoever holds a server's service connection may read many databases side by side: it borrows free slots for that. They bear
-- the holder's id in place of a worker's, and are as good as its hold is.
alter table herder.slot
    drop constraint slot_purpose_check,
    add constraint slot_purpose_check check (purpose in ('attempt', 'kept', 'control', 'service')),
    drop constraint job_iff_attempt_or_kept,
    add constraint job_iff_attempt_or_kept check (
        (job_id is null) = (coalesce(purpose, 'control') in ('control', 'service')) and (job_id is null) = (epoch is null));
