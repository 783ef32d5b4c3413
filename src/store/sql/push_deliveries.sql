-- Pushes a delivery for every ready job of run $1 that has none that a worker could take: after enqueue, when a wave
-- opens, on resume and on retry. $2: only these jobs.
-- A delivery's id is its job's, written as a ULID: one job has one delivery, however often it is pushed.
insert into apalis.jobs (id, job, job_type, status, attempts, max_attempts, run_at, idempotency_key)
select herder.delivery_id(job.id), convert_to(format('{"job":%s}', job.id), 'UTF8'), 'herder', 'Pending', job.epoch,
       2147483647, job.ready_at, job.id::text
from herder.job
where job.run_id = $1 and job.state = 'ready' and ($2::bigint[] is null or job.id = any($2))
  -- What is pending is left alone: a conflict would lock it, whatever comes of that, and claims want it meanwhile.
  and (select status from apalis.jobs where jobs.id = herder.delivery_id(job.id)) is distinct from 'Pending'
on conflict (id) do update
set status = 'Pending', run_at = excluded.run_at, lock_by = null, lock_at = null, done_at = null
where jobs.status <> 'Pending'
