-- What a worker takes, so that whoever waits for a run can be told that no worker takes its tenants. runner and servers are
-- null for an older worker, which does not say; only_run is null for one that works for all runs.
alter table herder.worker add column runner text, add column servers text[], add column only_run uuid;

-- Whether the ledger was read: a null in from_revision is the base only then.
alter table herder.job add column from_known boolean not null default true;
