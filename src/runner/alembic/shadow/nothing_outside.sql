do $herder$
declare
    -- A tenant that is a database may do there what it likes, but for what belongs to all databases.
    is_own constant boolean := pg_catalog.current_database() = {database};
    whole constant bigint := pg_catalog.txid_current_if_assigned();
    own_age constant bigint := pg_catalog.age(pg_catalog.mod(whole, 4294967296)::text::pg_catalog.xid);
    -- A right to a column is a change of it. The columns of a large fleet take a while to look through.
    has_new_columns constant boolean := not pg_catalog.current_setting('track_counts')::boolean
        or pg_catalog.pg_stat_get_xact_tuples_updated('pg_catalog.pg_attribute'::regclass) > 0;
    seen refcursor := 'herder_outside';
    rights text;
    what text;
    dropped text;
begin
    perform pg_catalog.set_config('jit', 'off', true);
    with own as (
        select oid from pg_catalog.pg_namespace
        where nspname in ({schema}, 'pg_catalog', 'pg_toast', 'information_schema') or nspname ~ '^pg_(toast_)?temp'
    ),
    held as (select * from pg_catalog.pg_locks where pid = pg_catalog.pg_backend_pid()),
    locked as (
        select c.oid, n.nspname || '.' || c.relname as name, l.mode
        from held l join pg_catalog.pg_class c on c.oid = l.relation join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where not is_own and n.oid not in (select oid from own)
    ),
    touched_here (classid, objid, subid, xmin) as (
        select tableoid, oid, 0, xmin from pg_catalog.pg_proc
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_type
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_constraint where conrelid = 0
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
        -- Whoever changes its mappings writes anew what it depends on.
        union all select classid, objid, 0, xmin from pg_catalog.pg_depend where classid = 'pg_catalog.pg_ts_config'::regclass
        -- To refer to a shared table is no change of it, though it gets triggers and a stronger lock for that.
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_trigger t
            where tgrelid in (select oid from locked where mode = 'ShareRowExclusiveLock') and not exists (
                select from pg_catalog.pg_constraint k where k.oid = tgconstraint and connamespace in (select oid from own))
        -- A grant locks nothing.
        union all select tableoid, oid, 0, xmin from pg_catalog.pg_class
        union all select 'pg_catalog.pg_class'::regclass, attrelid, attnum, xmin from pg_catalog.pg_attribute where has_new_columns
        union all select classoid, objoid, objsubid, xmin from pg_catalog.pg_description
        union all select classoid, objoid, objsubid, xmin from pg_catalog.pg_seclabel
    ),
    touched (source, classid, objid, subid, xmin) as (
        select tableoid, tableoid, oid, 0, xmin from pg_catalog.pg_database
        union all select tableoid, tableoid, oid, 0, xmin from pg_catalog.pg_tablespace
        union all select tableoid, classoid, objoid, 0, xmin from pg_catalog.pg_shdescription
        union all select tableoid, classoid, objoid, 0, xmin from pg_catalog.pg_shseclabel
        union all select tableoid, 'pg_catalog.pg_database'::regclass, setdatabase, 0, xmin from pg_catalog.pg_db_role_setting
        union all select 0, touched_here.* from touched_here where not is_own
    ),
    -- A row that is seen while its transaction goes on is our own. With savepoints, we have several numbers, one behind the other.
    -- Those far ahead are of rows that are older than the last turn of the numbers.
    changed as materialized (
        select source, classid, objid, subid from touched
        where case when own_age - pg_catalog.age(xmin) between 0 and 16777216
            then pg_catalog.txid_status(whole + own_age - pg_catalog.age(xmin)) = 'in progress' end
    ),
    about_database as (
        select source, is_own and (classid, objid) = (
            select tableoid, oid from pg_catalog.pg_database where datname = pg_catalog.current_database()) as is_own
        from changed where source <> 0
    )
    select (select change from (
        -- What belongs to all databases is locked until the end by whoever writes it, and so are large objects. The server counts
        -- what is written where it is not.
        select 'writes ' || relname as change from pg_catalog.pg_class
        where relnamespace = 'pg_catalog'::regnamespace and relname in
                ('pg_authid', 'pg_auth_members', 'pg_database', 'pg_db_role_setting', 'pg_tablespace', 'pg_shdescription',
                 'pg_shseclabel', 'pg_subscription', 'pg_largeobject', 'pg_parameter_acl', 'pg_replication_origin', 'pg_user_mapping')
            and (relisshared or not is_own) and case
                when relname in ('pg_parameter_acl', 'pg_replication_origin', 'pg_user_mapping') then
                    pg_catalog.pg_stat_get_xact_tuples_inserted(oid) + pg_catalog.pg_stat_get_xact_tuples_updated(oid)
                        + pg_catalog.pg_stat_get_xact_tuples_deleted(oid) > 0
                else oid in (select source from about_database where not about_database.is_own)
                    or oid in (select relation from held where mode = 'RowExclusiveLock')
                        and oid not in (select source from about_database where about_database.is_own)
                end
        union all
        select 'changes or writes ' || name from locked where mode in
            ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ExclusiveLock', 'AccessExclusiveLock')
        union all
        -- What is in the schema, or about something in it, has its name in its own.
        select 'makes or changes ' || (named).type || ' ' || (named).identity
        from (
            select pg_catalog.pg_identify_object(classid, objid, subid) as named from changed
            where source = 0 and (classid, subid) <> ('pg_catalog.pg_class'::regclass, 0)
            union all
            -- A comment that is taken away leaves a lock.
            select pg_catalog.pg_identify_object(classid, objid, 0) from held
            where not is_own and locktype = 'object' and database <> 0 and mode = 'ShareUpdateExclusiveLock'
        ) as all_changed
        where pg_catalog.strpos((named).identity, {schema}) = 0
            and coalesce((named).schema, '') <> 'pg_toast' and (named).identity !~ '(^| on )pg_(toast_)?temp'
        union all
        -- What whoever asks is about to change in no transaction.
        select 'changes or writes ' || n.nspname || '.' || c.relname
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.oid = pg_catalog.to_regclass(nullif(pg_catalog.current_setting('herder.target', true), ''))
            and not is_own and n.oid not in (select oid from own)
        limit 1
    ) as all_changes), (
        select pg_catalog.json_object_agg(objid, relacl) from changed join pg_catalog.pg_class c on c.oid = objid
        where classid = 'pg_catalog.pg_class'::regclass and subid = 0 and relacl is not null and relnamespace not in (select oid from own)
    ) into what, rights;
    if not is_own then
        perform pg_catalog.set_config('herder.rights', coalesce(rights, ''), true);
        fetch seen into dropped;
        what := coalesce(dropped, what);
    end if;
    if what is not null then
        raise exception using message = {outside} || what || {of};
    end if;
end $herder$;
