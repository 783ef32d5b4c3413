-- The control database, and one with 100 tenants, a schema each.
create database control;
create database tenants;
\connect tenants
do $$ begin
  for n in 1..100 loop
    execute format('create schema tenant_%s', lpad(n::text, 3, '0'));
  end loop;
end $$;
