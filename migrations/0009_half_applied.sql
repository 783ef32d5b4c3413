-- Of a tool that commits in the middle of a revision: what it is about to commit is noted before it does.
alter table herder.job
    add column half text; -- the revision of which a part may be committed, where the tenant's ledger does not say so
