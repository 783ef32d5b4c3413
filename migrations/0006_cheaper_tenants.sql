-- A slot is taken and given back for every tenant. Without an index on what it is taken for, and with room in its page, that
-- writes no index at all. Whoever asks for a slot knows its worker.
drop index herder.slot_job;
alter table herder.slot set (fillfactor = 20);

-- What has ended lately: whoever watches a run asks four times a second.
create index attempt_ended on herder.attempt (ended_at) where ended_at is not null;
