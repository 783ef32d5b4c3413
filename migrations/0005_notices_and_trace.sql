-- What a webhook is to be told of a run. A row is written in the transaction that moves the run, and goes once it was
-- told, or given up: so whoever has a webhook in its config can tell it, however the one that moved the run ended.
create table herder.notice (
    id            bigint generated always as identity primary key,
    run_id        uuid not null references herder.run on delete cascade,
    occasion      text not null check (occasion in ('start', 'halt', 'finish')),
    state         text not null,                     -- of the run, at that moment
    reason        text,                              -- why it halted
    tries         integer not null default 0,
    made_at       timestamptz not null default now(),
    due_at        timestamptz not null default now() -- the next try; while one is under way, when it is given up
);
create index notice_run on herder.notice (run_id, id);

-- The W3C trace context of the process that made the run: the attempts of all workers join it.
alter table herder.run add column traceparent text;
