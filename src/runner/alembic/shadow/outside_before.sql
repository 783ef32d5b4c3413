-- Declared before a transaction's statements, so that it sees what there was; asked behind them by `nothing_outside.sql`, which of
-- that is gone, or has other rights. Locks, settings, and what a number is called, are of the moment of asking.
declare herder_outside no scroll cursor for
    select 'drops ' || kind || ' ' || pg_catalog.concat_ws('.', n.nspname, o.name) as change
    from (
        select tableoid, oid, 'relation', relname, relnamespace from pg_catalog.pg_class
        union all select tableoid, oid, 'function', proname, pronamespace from pg_catalog.pg_proc
        union all select tableoid, oid, 'type', typname, typnamespace from pg_catalog.pg_type
        union all select tableoid, oid, 'schema', nspname, 0 from pg_catalog.pg_namespace
        union all select tableoid, oid, 'extension', extname, 0 from pg_catalog.pg_extension
        union all select tableoid, oid, 'publication', pubname, 0 from pg_catalog.pg_publication
        union all select tableoid, oid, 'event trigger', evtname, 0 from pg_catalog.pg_event_trigger
        union all select tableoid, oid, 'server', srvname, 0 from pg_catalog.pg_foreign_server
    ) as o (classid, objid, kind, name, space)
    left join pg_catalog.pg_namespace n on n.oid = o.space
    where (classid, objid) in (
        select case locktype when 'relation' then 'pg_catalog.pg_class'::regclass::oid else l.classid end, coalesce(relation, l.objid)
        from pg_catalog.pg_locks l
        where pid = pg_catalog.pg_backend_pid() and locktype in ('relation', 'object') and mode = 'AccessExclusiveLock'
    )
      and (pg_catalog.pg_identify_object(classid, objid, 0)).identity is null
      and coalesce(nspname, '') <> {schema} and coalesce(nspname, '') !~ '^pg_(toast|temp|toast_temp)';
