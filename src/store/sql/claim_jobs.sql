-- Claims up to $2 due jobs for worker $1, each together with its slots, or not at all.
-- $3: only this run. $4: only runs of this runner. $5: the servers that this worker knows.
-- $6, $7: of these servers at most so many jobs; $8: of each other one. $9: when the server was started that the worker last
-- gave its sign of life to. This one may have taken its place, and know less.
-- Here and in settle_jobs.sql, what is joined by an id is asked for by ANY as well: the server may have planned this when
-- it knew the tables as empty ones, and a join alone would go through all of them.
with allowed as (
    -- A server that does not answer must not take the room that the tenants of others need.
    select server.name as server, server.job_slots, least($2::bigint, coalesce(known.jobs, $8::bigint)) as jobs
    from herder.server left join unnest($6::text[], $7::bigint[]) as known (server, jobs) on known.server = server.name
    -- Of a server where nothing is due no slot is locked: there may be a thousand. LIMIT: a look into one index for each run, and
    -- no join, which would go through all jobs.
    where (select true from herder.run
           where run.state = 'running' and run.runner = $4 and ($3::uuid is null or run.id = $3)
             and (select true from herder.job
                  where job.run_id = run.id and job.server = server.name and job.state = 'ready' and job.ready_at <= now()
                  limit 1)
           limit 1)
),
free as (
    -- At most as many free slots as could be used. SKIP LOCKED: workers that claim at the same moment get different
    -- rows instead of waiting.
    select locked.server, locked.number,
           row_number() over (partition by locked.server order by locked.purpose, locked.number) as nth
    from allowed
    left join lateral (
        -- While a lowered budget drains, each slot above it that is still taken stands for a free one below it: the
        -- highest ones stay free.
        select slot.number from herder.slot
        where slot.server = allowed.server and slot.worker is null and slot.number <= allowed.job_slots
        order by slot.number desc
        offset (select count(*) from herder.slot
                where slot.server = allowed.server and slot.worker is not null and slot.number > allowed.job_slots)
        limit 1
    ) highest on true
    cross join lateral (
        select slot.server, slot.number, slot.purpose
        from herder.slot
        where slot.server = allowed.server
          and ((slot.worker is null and slot.number <= highest.number)
               or (slot.worker = $1 and slot.purpose = 'kept' and slot.suspect_since is null
                   and slot.number <= allowed.job_slots))
        -- What this worker kept comes first: its connection is open.
        order by slot.purpose, slot.number
        limit allowed.jobs * 2
        for update skip locked
    ) locked
    -- An idle fleet locks nothing.
    where exists (select from herder.run where run.state = 'running')
      -- Nor does a worker that others may already take for dead: it beats first.
      and exists (select from herder.worker where worker.id = $1 and worker.lease_until >= now())
      and pg_postmaster_start_time() = $9::timestamptz
),
supply as (
    select server, count(*) as slots, allowed.job_slots from free join allowed using (server)
    group by server, allowed.job_slots
),
due as (
    select run.created_at, picked.*
    from supply
    join herder.run on run.state = 'running' and run.runner = $4 and ($3::uuid is null or run.id = $3)
    cross join lateral (
        select job.id, job.server, job.ready_at, job.connections
        from herder.job
        where job.run_id = run.id and job.server = supply.server and job.state = 'ready' and job.ready_at <= now()
          and (job.own_url or job.server = any($5::text[]))
          -- What needs more than the whole budget waits until that is raised, and holds up nobody until then.
          and job.connections <= supply.job_slots
          -- A look into one index for each job, whatever the statistics say. A join would be planned for far fewer pending
          -- deliveries than there may be, and go through all of them.
          and (select status from apalis.jobs where jobs.id = herder.delivery_id(job.id)) = 'Pending'
        order by job.ready_at, job.id
        limit $2
        for update of job skip locked
    ) picked
),
queued as (
    select due.*,
           sum(due.connections) over (partition by due.server order by due.created_at, due.ready_at, due.id) as upto,
           row_number() over (partition by due.server order by due.created_at, due.ready_at, due.id) as nth
    from due
),
picked as (
    -- One of each server in turn, so that a busy one does not hold back the others.
    select queued.* from queued join supply using (server) join allowed using (server)
    where queued.upto <= supply.slots and queued.nth <= allowed.jobs
    order by queued.nth, queued.created_at, queued.id
    limit $2
),
claimed as (
    update herder.job
    set state = 'running', epoch = job.epoch + 1, starts = job.starts + 1, worker = $1, step = 'claimed',
        claimed_at = now()
    from picked where job.id = picked.id and job.id = any(array(select id from picked))
    returning job.*
),
taken as (
    update herder.slot
    set worker = $1, purpose = 'attempt', job_id = claimed.id, epoch = claimed.epoch, taken_at = now()
    from picked
    join claimed on claimed.id = picked.id
    join free on free.server = picked.server and free.nth > picked.upto - picked.connections and free.nth <= picked.upto
    where slot.server = free.server and slot.number = free.number
    returning slot.job_id, slot.number
),
started as (
    insert into herder.attempt (job_id, epoch, worker)
    select id, epoch, $1 from claimed
),
delivered as (
    update apalis.jobs set status = 'Running', lock_by = $1, lock_at = now(), attempts = claimed.epoch
    from claimed
    where jobs.id = herder.delivery_id(claimed.id)
      and jobs.id = any(array(select herder.delivery_id(id) from claimed))
)
select claimed.id as "job!", claimed.epoch as "epoch!", claimed.run_id as "run!", claimed.tenant as "tenant!",
       claimed.server as "server!", claimed.database as "database!", claimed.schema, claimed.own_url as "own_url!", claimed.from_revision, claimed.to_revision,
       claimed.resolved as "resolved!", claimed.failures as "failures!", claimed.orphaned as "orphaned!",
       extract(epoch from now() - claimed.blocked_since)::float8 as blocked, claimed.plan_id, claimed.looks as "looks!",
       (select array_agg(taken.number) from taken where taken.job_id = claimed.id) as "slots!",
       run.direction as "direction!: Direction", run.target as "target!", run.checksum as "checksum!",
       run.traceparent
from claimed join herder.run on run.id = claimed.run_id
