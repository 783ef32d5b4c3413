-- Writes how attempt $2 at job $1 by worker $3 ended: job, attempt, slots and delivery, or nothing at all.
-- Zero rows: the job went on without this attempt.
with settled as (
    update herder.job
    set state = $4, outcome = $5, error = coalesce($6, case when $4 = 'succeeded' then null else job.error end),
        from_revision = coalesce($7, job.from_revision),
        to_revision = case when $4 = 'succeeded' then $8 else coalesce($8, job.to_revision) end,
        resolved = job.resolved or $4 = 'succeeded',
        ready_at = case when $4 = 'ready' then now() + $9::float8 * interval '1 second' else job.ready_at end,
        failures = job.failures + $10,
        attempts = job.attempts + case when $4 in ('succeeded', 'failed') or $10 > 0 then 1 else 0 end,
        blocked_since = case when $11 then coalesce(job.blocked_since, now()) end,
        starts = 0,
        -- $13: its plan does not fit any more. The tool itself finds the way from where the tenant stands.
        plan_id = case when not $13 then job.plan_id end,
        plan_note = case when not $13 and $4 = 'ready' then job.plan_note end,
        connections = case when $13 then run.connections else job.connections end,
        orphaned = job.orphaned and $4 = 'ready',
        worker = null, step = null,
        settled_at = case when $4 in ('succeeded', 'failed', 'skipped', 'cancelled') then now() end
    from herder.run
    where job.id = $1 and job.epoch = $2 and job.worker = $3 and job.state = 'running' and run.id = job.run_id
    returning job.id, job.run_id
),
ended as (
    update herder.attempt
    set ended_at = now(), result = $12, error = $6, from_revision = $7, to_revision = $8
    from settled where attempt.job_id = settled.id and attempt.epoch = $2
),
freed as (
    update herder.slot
    set worker = null, job_id = null, epoch = null, taken_at = null, suspect_since = null
    from settled where slot.job_id = settled.id and slot.epoch = $2 and slot.worker = $3
),
delivered as (
    update apalis.jobs
    set status = case $4 when 'ready' then 'Pending' when 'succeeded' then 'Done' when 'skipped' then 'Done' else 'Killed' end,
        run_at = case when $4 = 'ready' then now() + $9::float8 * interval '1 second' else jobs.run_at end,
        done_at = case when $4 <> 'ready' then now() end,
        lock_by = null, lock_at = null, last_result = $6
    from settled where jobs.id = lpad(to_hex(settled.id), 26, '0')
)
select run_id as "run!" from settled
