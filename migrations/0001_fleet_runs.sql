-- Herder's control tables. The schema itself is made by `herder setup` before this runs.
--
-- What is true, and where it is written:
--   * the tenant's own ledger is the truth about the tenant: no row here is ever believed instead of it;
--   * the job row is the truth about the run: apalis.jobs holds deliveries, and losing one loses nothing;
--   * every write about a job matches its id and its epoch.

-- One Postgres server that tenants live on.
create table herder.server (
    name       text primary key,
    address    text not null,                        -- host:port
    budget     integer not null,                     -- connections that all of Herder may hold to it
    -- Those that jobs may take: one is kept for inspection and reclaim, so that these never push the sum over the
    -- budget. A budget too small to spare one is left to the jobs.
    job_slots  integer not null generated always as (case when budget >= 3 then budget - 1 else budget end) stored,
    updated_at timestamptz not null default now(),
    constraint budget_positive check (budget > 0)
);

-- A worker process. Its id is its name plus a random value per start, so that a restart is another worker.
create table herder.worker (
    id          text primary key,
    name        text not null,
    version     text not null,
    concurrency integer not null,
    draining    boolean not null default false,
    started_at  timestamptz not null default now(),
    beat_at     timestamptz not null default now(),
    lease_until timestamptz not null
);

-- One rollout of a target over a set of tenants. Its jobs are the frozen manifest.
create table herder.run (
    id            uuid primary key,
    direction     text not null check (direction in ('upgrade', 'downgrade')),
    target        text not null,                     -- as it was named: head, base, a revision, +1, -2
    runner        text not null,                     -- alembic, sql, command
    checksum      text not null,                     -- of the migrations; a retry freezes those that it finds
    connections   smallint not null,                 -- slots that one attempt without a plan takes
    state         text not null default 'running'
                  check (state in ('running', 'succeeded', 'failed', 'paused', 'halted', 'cancelled')),
    tenants       integer not null,                  -- jobs
    wave          integer not null default 0,        -- the open wave
    waves         integer not null,
    canary        boolean not null default false,    -- whether wave 0 must succeed before wave 1 opens
    failure_limit integer,                           -- this many may fail; one more halts the run
    forgiven      integer not null default 0,        -- failures from before the last resume
    reason        text,                              -- why it halted
    created_at    timestamptz not null default now(),
    settled_at    timestamptz,
    constraint settled_at_iff_settled check ((settled_at is not null) = (state in ('succeeded', 'failed', 'cancelled'))),
    constraint reason_only_if_halted check (reason is null or state = 'halted')
);
create index run_latest on herder.run (created_at desc);
-- The few runs that workers look at.
create index run_running on herder.run (created_at) where state = 'running';

-- The SQL between two revisions, kept once however many runs and tenants use it.
create table herder.plan (
    id         text primary key,                     -- the SHA-256 of its content
    body       json not null,
    created_at timestamptz not null default now()
);

-- One tenant's work in one run.
create table herder.job (
    id            bigint generated always as identity primary key,
    run_id        uuid not null references herder.run on delete cascade,
    tenant        text not null,
    members       text[] not null default '{}',      -- other tenants of the same place
    isolation     text not null check (isolation in ('schema', 'database', 'shared')),
    server        text not null references herder.server,
    database      text not null,
    schema        text,
    own_url       boolean not null default false,
    wave          integer not null default 0,
    state         text not null
                  check (state in ('waiting', 'ready', 'running', 'succeeded', 'failed', 'skipped', 'cancelled')),
    from_revision text,                              -- before: null where it was never migrated or is not known
    to_revision   text,                              -- the target, then where the ledger was read at the end; null: base
    resolved      boolean not null,                  -- whether from and to are known
    plan_id       text,                              -- null: by the tool itself. No reference: plans are never removed
    plan_note     jsonb,                             -- how far an attempt got where the tenant's ledger cannot say so
    connections   smallint not null,                 -- slots that one attempt takes
    epoch         integer not null default 0,        -- the number of the last attempt
    starts        integer not null default 0,        -- claims since an attempt last ended with a word
    failures      integer not null default 0,        -- failed attempts that count, since the last retry
    attempts      integer not null default 0,        -- ended attempts that count: not those that the infrastructure ended
    orphaned      boolean not null default false,    -- an attempt ended without a word: it may have committed
    ready_at      timestamptz not null default now(),
    blocked_since timestamptz,                       -- since when nothing but the infrastructure was in the way
    worker        text,
    step          text,
    claimed_at    timestamptz,
    settled_at    timestamptz,
    outcome       text check (outcome in ('migrated', 'already_current', 'found_applied')),
    error         jsonb,                             -- of the last attempt that failed
    constraint note_only_with_plan check (plan_note is null or plan_id is not null),
    constraint connections_positive check (connections > 0),
    constraint tenant_once_per_run unique (run_id, tenant),
    constraint schema_iff_not_database check ((schema is null) = (isolation = 'database')),
    constraint settled_at_iff_settled check (
        (settled_at is not null) = (state in ('succeeded', 'failed', 'skipped', 'cancelled'))),
    constraint worker_iff_running check ((worker is not null) = (state = 'running')),
    constraint step_iff_running check ((step is not null) = (state = 'running')),
    constraint outcome_iff_succeeded check ((outcome is not null) = (state = 'succeeded')),
    constraint failed_with_error check (state <> 'failed' or error is not null)
);
-- What a claim reads: the due jobs of a run on a server, oldest first.
create index job_ready on herder.job (run_id, server, ready_at, id) where state = 'ready';
-- Whose jobs a dead worker held.
create index job_running on herder.job (worker) where state = 'running';
-- Whether a wave, or the run, is over.
create index job_open on herder.job (run_id, wave) where state in ('waiting', 'ready', 'running');
create index job_failed on herder.job (run_id) where state = 'failed';
-- Whether two runs want one place.
create index job_open_place on herder.job (server, database, schema) where state in ('waiting', 'ready', 'running');

-- The right to hold one connection to one server. A row without a worker is free; taking it is the lease.
create table herder.slot (
    server        text not null references herder.server on delete cascade,
    number        integer not null,
    worker        text,
    job_id        bigint,
    epoch         integer,
    taken_at      timestamptz,
    suspect_since timestamptz,                       -- its worker is gone, but its session may not be
    primary key (server, number),
    constraint taken_whole check (
        (worker is null) = (job_id is null) and (worker is null) = (epoch is null) and (worker is null) = (taken_at is null)),
    constraint suspect_only_if_taken check (suspect_since is null or worker is not null)
);
create index slot_free on herder.slot (server, number) where worker is null;
create index slot_job on herder.slot (job_id, epoch) where worker is not null;

-- One try at a job. Its number is the job's epoch.
create table herder.attempt (
    job_id        bigint not null references herder.job on delete cascade,
    epoch         integer not null,
    worker        text not null,
    started_at    timestamptz not null default now(),
    ended_at      timestamptz,
    result        text,                              -- an outcome, or failed, retried, snoozed, returned, rescued, …
    from_revision text,
    to_revision   text,
    error         jsonb,
    primary key (job_id, epoch),
    constraint ended_with_result check ((ended_at is null) = (result is null))
);

-- A plan that was proven: the digest of its SQL, of the migrations and of the versions of all that was at work.
create table herder.proof (
    key           text primary key,
    proven_at     timestamptz not null default now(),
    used_at       timestamptz not null default now()
);
