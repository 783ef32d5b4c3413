-- Fails the ready jobs on server $1 for which no slot can become free: its server cannot be reached, so that all that its budget
-- has for attempts is held by what may be left of earlier ones, and has been for $3 seconds. $2: the error. Safe to run by several
-- workers at once.
with stuck as (
    select job.id
    from herder.job join herder.run on run.id = job.run_id
    join herder.server on server.name = job.server
    where job.server = $1 and job.state = 'ready' and run.state = 'running'
      and job.connections > (select count(*) from herder.slot
                             where slot.server = server.name and slot.worker is null and slot.number <= server.job_slots)
      -- Whoever is at work there, or has just been, will free some.
      and not exists (select from herder.slot
                      where slot.server = server.name and slot.purpose in ('attempt', 'kept')
                        and (slot.suspect_since is null or slot.suspect_since > now() - $3::float8 * interval '1 second'))
      and exists (select from herder.slot where slot.server = server.name and slot.suspect_since is not null)
    -- In the order in which `retry` locks them; what is being claimed or settled is not stuck.
    order by job.id for update of job skip locked
),
failed as (
    update herder.job set state = 'failed', settled_at = now(), error = $2
    from stuck where job.id = stuck.id
    returning job.id, job.run_id
),
delivered as (
    update apalis.jobs set status = 'Killed', done_at = now(), lock_by = null, lock_at = null, last_result = $2
    from failed where jobs.id = herder.delivery_id(failed.id)
)
select run_id as "run!", count(*) as "jobs!" from failed group by run_id
