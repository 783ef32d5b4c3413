do $herder$
declare
    seen refcursor := 'herder_outside';
    what text;
begin
    -- A tenant that is a database may do there what it likes.
    if pg_catalog.current_database() = {database} then
        return;
    end if;
    perform pg_catalog.set_config('jit', 'off', true);
    fetch seen into what;
    if what is not null then
        raise exception using message = {outside} || what;
    end if;
    with own as (
        select oid from pg_catalog.pg_namespace
        where nspname in ({schema}, 'pg_catalog', 'pg_toast', 'information_schema') or nspname ~ '^pg_(toast_)?temp'
    ),
    me as (select whole, pg_catalog.mod(whole, 4294967296) as xid from pg_catalog.txid_current_if_assigned() as whole),
    locked as (
        select c.oid, c.relname, c.relnamespace, l.mode, l.database
        from pg_catalog.pg_locks l join pg_catalog.pg_class c on c.oid = l.relation
        where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'relation'
    ),
    touched (classid, objid, subid, xmin) as (
        select tableoid, oid, 0, xmin from pg_catalog.pg_proc
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_type
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_namespace
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_extension
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_publication
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_event_trigger
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_foreign_data_wrapper
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_foreign_server
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_cast
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_transform
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_language
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_am
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_operator
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_opclass
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_opfamily
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_collation
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_conversion
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_statistic_ext
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_ts_config
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_ts_dict
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_ts_parser
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_ts_template
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_default_acl
        union all select 'pg_catalog.pg_largeobject'::regclass, oid, 0, xmin from pg_catalog.pg_largeobject_metadata
        union all select 'pg_catalog.pg_type'::regclass, enumtypid, 0, xmin from pg_catalog.pg_enum
        -- A grant locks nothing. A foreign key to a shared table leaves its mark there, too: it gets triggers.
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_class c
            where relacl is not null and not exists (
                select from pg_catalog.pg_constraint k
                where k.confrelid = c.oid and k.contype = 'f' and k.connamespace in (select oid from own))
        union all select classoid, objoid, objsubid, xmin from pg_catalog.pg_description
        union all select classoid, objoid, objsubid, xmin from pg_catalog.pg_seclabel
    ),
    -- A row that is seen while its transaction goes on is our own. With savepoints, we have several numbers.
    changed as materialized (
        select classid, objid, subid from touched, me
        where case when xmin::text::bigint >= xid then pg_catalog.txid_status(whole + xmin::text::bigint - xid) = 'in progress' end
    )
    select change into what from (
        -- A foreign key to a shared table takes ShareRowExclusiveLock there: to refer to it is no change.
        select 'changes or writes ' || n.nspname || '.' || l.relname as change
        from locked l join pg_catalog.pg_namespace n on n.oid = l.relnamespace
        where database <> 0 and n.oid not in (select oid from own) and mode in
            ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ExclusiveLock', 'AccessExclusiveLock')
        union all
        -- What belongs to all databases is locked until the end by whoever writes it, and so are large objects.
        select 'writes ' || relname from locked
        where mode = 'RowExclusiveLock' and (database = 0 and relname in
                ('pg_authid', 'pg_auth_members', 'pg_database', 'pg_db_role_setting', 'pg_tablespace', 'pg_shdescription',
                 'pg_shseclabel', 'pg_subscription')
            or oid = 'pg_catalog.pg_largeobject'::regclass)
        union all
        -- What is in the schema, or about something in it, has its name in its own.
        select 'makes or changes ' || (named).type || ' ' || (named).identity
        from (select pg_catalog.pg_identify_object(classid, objid, subid) as named from changed) as all_changed
        where pg_catalog.strpos((named).identity, {schema}) = 0 and coalesce((named).schema, (named).identity) !~ '^pg_(toast_)?temp'
        union all
        -- What whoever asks is about to change in no transaction.
        select 'changes or writes ' || n.nspname || '.' || c.relname
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.oid = pg_catalog.to_regclass(nullif(pg_catalog.current_setting('herder.target', true), ''))
            and n.oid not in (select oid from own)
        limit 1
    ) as all_changes;
    if what is not null then
        raise exception using message = {outside} || what;
    end if;
end $herder$;
