do $herder$
declare what text;
begin
    with own as (
        select oid from pg_catalog.pg_namespace
        -- No schema: the whole database is the tenant's.
        where {schema} = '' or nspname in ({schema}, 'pg_catalog', 'pg_toast', 'information_schema')
           or nspname ~ '^pg_(toast_)?temp'
    ),
    me as (select pg_catalog.txid_current() as whole, pg_catalog.txid_current() % 4294967296 as xid),
    locked as (
        select c.oid, c.relname, c.relnamespace, l.mode, l.database
        from pg_catalog.pg_locks l join pg_catalog.pg_class c on c.oid = l.relation
        where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'relation'
    )
    select changed into what from (
        -- A foreign key to a shared table takes ShareRowExclusiveLock there: to refer to it is no change.
        select 'changes or writes ' || n.nspname || '.' || l.relname as changed
        from locked l join pg_catalog.pg_namespace n on n.oid = l.relnamespace
        where database <> 0 and n.oid not in (select oid from own) and mode in
            ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ExclusiveLock', 'AccessExclusiveLock')
        union all
        -- What belongs to all databases is locked until the end by whoever writes it.
        select 'writes ' || relname from locked
        where database = 0 and mode = 'RowExclusiveLock' and relname in
            ('pg_authid', 'pg_auth_members', 'pg_database', 'pg_db_role_setting', 'pg_tablespace')
        union all
        -- A row that is seen while its transaction goes on is our own. With savepoints, we have several numbers.
        select 'makes or changes function ' || n.nspname || '.' || p.proname
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace, me
        where case when p.xmin::text::bigint >= me.xid then pg_catalog.txid_status(me.whole + p.xmin::text::bigint - me.xid) = 'in progress' end
          and n.oid not in (select oid from own)
        union all
        select 'makes or changes type ' || n.nspname || '.' || t.typname
        from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace, me
        where case when t.xmin::text::bigint >= me.xid then pg_catalog.txid_status(me.whole + t.xmin::text::bigint - me.xid) = 'in progress' end
          and n.oid not in (select oid from own)
        union all
        select 'makes or changes schema ' || nspname from pg_catalog.pg_namespace, me
        where case when xmin::text::bigint >= me.xid then pg_catalog.txid_status(me.whole + xmin::text::bigint - me.xid) = 'in progress' end
          and {schema} not in ('', nspname)
        union all
        select 'makes or changes extension ' || extname from pg_catalog.pg_extension, me
        where {schema} <> '' and case when xmin::text::bigint >= me.xid then pg_catalog.txid_status(me.whole + xmin::text::bigint - me.xid) = 'in progress' end
        union all
        -- A grant locks nothing.
        select 'makes or changes ' || n.nspname || '.' || c.relname
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace, me
        where case when c.xmin::text::bigint >= me.xid then pg_catalog.txid_status(me.whole + c.xmin::text::bigint - me.xid) = 'in progress' end
          and n.oid not in (select oid from own)
          -- A foreign key to a shared table leaves its mark there, too: it gets triggers.
          and not exists (select from pg_catalog.pg_constraint k where k.confrelid = c.oid and k.contype = 'f'
                          and k.connamespace in (select oid from own))
        union all
        select 'changes type ' || n.nspname || '.' || t.typname
        from pg_catalog.pg_enum e join pg_catalog.pg_type t on t.oid = e.enumtypid
        join pg_catalog.pg_namespace n on n.oid = t.typnamespace, me
        where case when e.xmin::text::bigint >= me.xid then pg_catalog.txid_status(me.whole + e.xmin::text::bigint - me.xid) = 'in progress' end
          and n.oid not in (select oid from own)
        union all
        -- What is gone shows in no row.
        select 'removes something' from (select {counts} as left_over) as now where left_over < {there}
        limit 1
    ) as all_changes;
    if what is not null then
        raise exception using message = {outside} || what;
    end if;
end $herder$;
