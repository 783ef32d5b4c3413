-- A person may change a server's budget while runs are on: what `herder budget --set` says goes until it is taken back.
-- `budget` stays what counts: the override where there is one, else what the config and the server came to.
alter table herder.server add column configured integer, add column overridden integer;
update herder.server set configured = budget;
alter table herder.server alter column configured set not null,
    add constraint configured_positive check (configured > 0),
    add constraint overridden_positive check (overridden > 0),
    add constraint budget_is_what_counts check (budget = coalesce(overridden, configured));
