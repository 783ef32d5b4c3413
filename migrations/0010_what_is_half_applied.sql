-- What is half applied belongs to the tenant, not to the job that left it so: the next one may be another run's.
create table herder.half_applied (
    -- A whole database is its schema `public` here: the ledger of both stands there.
    server    text not null,
    database  text not null,
    schema    text not null,
    direction text not null,
    revisions text[] not null, -- those of which a part is committed, or may be, while the tenant's ledger does not say so
    plan_id   text references herder.plan,
    note      jsonb,           -- how far that plan got
    noted_at  timestamptz not null default now(),
    primary key (server, database, schema),
    constraint note_of_plan check ((plan_id is null) = (note is null))
);

insert into herder.half_applied (server, database, schema, direction, revisions, plan_id, note)
select distinct on (server, database, coalesce(schema, 'public'))
       server, database, coalesce(schema, 'public'), direction,
       coalesce(string_to_array(half, e'\n'),
                array_remove(array[plan.body -> 'steps' -> (plan_note ->> 'step')::integer -> 'revisions' ->> -1], null)),
       case when half is null then plan_id end, case when half is null then plan_note end
from herder.job join herder.run on run.id = job.run_id left join herder.plan on plan.id = job.plan_id
where half is not null or plan_note is not null
order by server, database, coalesce(schema, 'public'), job.id desc;

alter table herder.job
    drop column half,
    drop column plan_note,
    -- Whether more may be half applied in its tenant than was known when it got its plan.
    add column looks boolean not null default false;
