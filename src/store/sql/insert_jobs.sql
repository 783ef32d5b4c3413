-- The frozen manifest of a run, in as many chunks as the caller likes.
insert into herder.job (run_id, tenant, members, isolation, server, database, schema, own_url, wave, state,
                        from_revision, from_known, to_revision, resolved, plan_id, looks, connections, outcome, settled_at)
select $1, tenant, case members when '' then '{}' else string_to_array(members, e'\n') end, isolation, server,
       database, schema, own_url, wave,
       case when current then 'succeeded' when wave <= $2 then 'ready' else 'waiting' end,
       from_revision, from_known, to_revision, resolved, plan_id, looks, connections,
       case when current then 'already_current' end, case when current then now() end
from unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::boolean[], $10::integer[],
            $11::boolean[], $12::text[], $13::boolean[], $14::text[], $15::boolean[], $16::text[], $17::smallint[], $18::boolean[])
     with ordinality as listed (tenant, members, isolation, server, database, schema, own_url, wave, current,
                                from_revision, from_known, to_revision, resolved, plan_id, connections, looks, position)
order by position
