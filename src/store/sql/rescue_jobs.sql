-- Sends back the jobs whose worker was not heard of for its whole lease, and marks their slots: the worker is gone,
-- but its sessions may not be. A job that was started $1 times is parked instead: it may be what kills the workers.
-- A job of a cancelled run becomes cancelled. Safe to run by all workers at once: each job is sent back by one of them.
with expired as (
    -- Locked, so that each is looked at as it is now: one whose heartbeat has just come keeps what it holds. One whose heartbeat
    -- comes meanwhile is passed over, or is told afterwards what it has lost: it never believes in a job that is gone.
    select id from herder.worker
    where lease_until < now() and exists (select from herder.job where job.worker = worker.id and job.state = 'running')
    for update skip locked
),
lost as (
    select job.id, job.epoch, job.worker,
           case when run.state = 'cancelled' then 'cancelled' when job.starts >= $1 then 'failed' else 'ready' end as next
    from herder.job join herder.run on run.id = job.run_id
    where job.state = 'running'
      and (job.worker in (select id from expired) or not exists (select from herder.worker where worker.id = job.worker))
    for update of job skip locked
),
returned as (
    update herder.job
    set state = lost.next, settled_at = case when lost.next <> 'ready' then now() end,
        error = case when lost.next = 'failed' then jsonb_build_object('reason', 'parked',
            'message', format('started %s times, and each time its worker was lost', job.starts),
            'hint', 'the logs of the lost workers say what it did to them; `herder retry` starts it again')
            else job.error end,
        worker = null, step = null, orphaned = true, blocked_since = null,
        -- The first time it keeps its place: it has waited for its turn already. After that each comes at a moment of its
        -- own: jobs that went down with the same worker again and again must part, so that only the one to blame is parked.
        ready_at = case when job.starts <= 1 then job.ready_at
                        else now() + random() * least(job.starts - 1, 10) * interval '2 seconds' end
    from lost where job.id = lost.id and job.epoch = lost.epoch
    returning job.id, job.run_id, job.epoch, job.state, job.tenant, job.ready_at, lost.worker
),
ended as (
    update herder.attempt set ended_at = now(), result = 'rescued'
    from returned where attempt.job_id = returned.id and attempt.epoch = returned.epoch and attempt.ended_at is null
),
suspected as (
    update herder.slot set suspect_since = now()
    -- Of this attempt: whoever made a former one may have kept its slot, and be alive.
    from returned where slot.job_id = returned.id and slot.epoch = returned.epoch and slot.suspect_since is null
),
delivered as (
    update apalis.jobs
    set status = case returned.state when 'ready' then 'Pending' else 'Killed' end, run_at = returned.ready_at,
        done_at = case returned.state when 'ready' then null else now() end, lock_by = null, lock_at = null
    from returned where jobs.id = herder.delivery_id(returned.id)
)
select run_id as "run!", id as "job!", epoch as "epoch!", tenant as "tenant!", worker as "worker!", state as "state!"
from returned
