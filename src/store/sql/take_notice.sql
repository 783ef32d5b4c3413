-- Takes the next due notice for $3 seconds. $1: only of this run. $2: the occasions that are told. $4: how many tries it has.
update herder.notice
set tries = tries + 1, due_at = now() + make_interval(secs => $3)
where id = (
    select notice.id from herder.notice
    where ($1::uuid is null or run_id = $1) and occasion = any($2::text[])
      and due_at <= now() and tries < $4 and made_at > now() - interval '1 hour'
      -- A run's end is not told before its start: an earlier notice that is yet to be told goes first.
      and not exists (
          select from herder.notice earlier
          where earlier.run_id = notice.run_id and earlier.id < notice.id and earlier.occasion = any($2::text[])
            and earlier.made_at > now() - interval '1 hour' and (earlier.tries < $4 or earlier.due_at > now())
      )
    order by notice.id
    limit 1
    -- SKIP LOCKED: two who look at the same moment do not tell the same.
    for update skip locked
)
returning id, run_id, occasion as "occasion: Occasion", state as "state: RunState", reason,
    counts as "counts: Json<BTreeMap<JobState, i64>>", failed, made_at, tries
