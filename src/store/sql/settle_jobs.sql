-- Writes how attempts of worker $1 ended ($2: an array of them): for each its job, attempt, slots and delivery, or nothing
-- at all. What is missing in the answer went on without this attempt.
with ended as materialized (
    select * from jsonb_to_recordset($2) as ended (
        job bigint, epoch integer, state text, outcome text, error jsonb, from_revision text, to_revision text,
        delay double precision, counts integer, blocked boolean, result text, live boolean, keep boolean, suspect boolean,
        begun boolean, in_doubt boolean)
    -- In the order in which `retry` locks them, so that the two cannot deadlock.
    order by job
),
settled as (
    update herder.job
    set state = ended.state, outcome = ended.outcome,
        error = coalesce(ended.error, case when ended.state = 'succeeded' then null else job.error end),
        from_revision = coalesce(ended.from_revision, job.from_revision),
        from_known = job.from_known or ended.state = 'succeeded',
        to_revision = case when ended.state = 'succeeded' then ended.to_revision
                           else coalesce(ended.to_revision, job.to_revision) end,
        resolved = job.resolved or ended.state = 'succeeded',
        ready_at = case when ended.state = 'ready' then now() + ended.delay * interval '1 second' else job.ready_at end,
        failures = job.failures + ended.counts,
        attempts = job.attempts + case when ended.state in ('succeeded', 'failed') or ended.counts > 0 then 1 else 0 end,
        -- While a migration was under way, nothing was in the way: that time does not count.
        blocked_since = case when ended.blocked
                             then coalesce(job.blocked_since + case when ended.begun then now() - job.claimed_at
                                                                    else interval '0' end, now()) end,
        starts = 0,
        -- `live`: its plan does not fit any more. The tool itself finds the way from where the tenant stands.
        plan_id = case when not ended.live then job.plan_id end,
        connections = case when ended.live then (select connections from herder.run where run.id = job.run_id)
                           else job.connections end,
        orphaned = (job.orphaned or ended.in_doubt) and ended.state <> 'succeeded',
        worker = null, step = null,
        settled_at = case when ended.state in ('succeeded', 'failed', 'skipped', 'cancelled') then now() end
    from ended
    -- Whoever has a worker is running. Said that way, no index of the running ones is taken, which may hold many that no
    -- longer do.
    where job.id = ended.job and job.epoch = ended.epoch and job.worker = $1
      and job.id = any(array(select job from ended))
    returning job.id, job.run_id, job.epoch, job.state, ended.error, ended.from_revision, ended.to_revision, ended.delay,
              ended.result, ended.keep, ended.suspect
),
recorded as (
    update herder.attempt
    set ended_at = now(), result = settled.result, error = settled.error, from_revision = settled.from_revision,
        to_revision = settled.to_revision
    from settled
    where attempt.job_id = settled.id and attempt.epoch = settled.epoch
      and attempt.job_id = any(array(select id from settled))
),
freed as (
    -- A kept slot stays this worker's: the connection that it stands for is open. So does one whose server does not say whether
    -- it is still there, until that was asked.
    update herder.slot
    set worker = case when settled.keep or settled.suspect then slot.worker end,
        purpose = case when settled.keep then 'kept' when settled.suspect then slot.purpose end,
        taken_at = case when settled.keep then now() when settled.suspect then slot.taken_at end,
        job_id = case when settled.keep or settled.suspect then slot.job_id end,
        epoch = case when settled.keep or settled.suspect then slot.epoch end,
        suspect_since = case when settled.suspect then now() end
    from settled where slot.job_id = settled.id and slot.epoch = settled.epoch and slot.worker = $1
),
delivered as (
    update apalis.jobs
    set status = case settled.state when 'ready' then 'Pending' when 'succeeded' then 'Done' when 'skipped' then 'Done'
                                    else 'Killed' end,
        run_at = case when settled.state = 'ready' then now() + settled.delay * interval '1 second' else jobs.run_at end,
        done_at = case when settled.state <> 'ready' then now() end,
        lock_by = null, lock_at = null, last_result = settled.error
    from settled
    where jobs.id = herder.delivery_id(settled.id)
      and jobs.id = any(array(select herder.delivery_id(id) from settled))
)
select id as "job!", epoch as "epoch!", run_id as "run!",
       state = 'failed'
       -- ORDER BY: by the index of the ready ones, and from its end. Its beginning is full of those that were claimed.
       or (select id from herder.job where job.run_id = settled.run_id and job.state = 'ready'
           order by server desc, ready_at desc, id desc limit 1) is null as "moves!"
from settled
