-- A message may be told long after the run has gone on: what it says of the tenants is written with it.
alter table herder.notice
    add column counts jsonb not null default '{}',  -- tenants by state
    add column failed text[] not null default '{}'; -- the first few that have failed
