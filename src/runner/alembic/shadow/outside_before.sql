-- Declared before a transaction's statements, so that it sees what there was; asked behind them by `nothing_outside.sql`, which of
-- that is gone, or has other rights. Locks, settings, and what a number is called, are of the moment of asking.
declare herder_outside no scroll cursor for
    select 'drops ' || kind || ' ' || pg_catalog.concat_ws('.', nspname, o.name) as change
    from (
        select locked.* from (
            select distinct case locktype when 'relation' then 'pg_catalog.pg_class'::regclass::oid else classid end as classid,
                coalesce(relation, objid) as objid
            from pg_catalog.pg_locks
            where pid = pg_catalog.pg_backend_pid() and locktype in ('relation', 'object') and mode = 'AccessExclusiveLock'
        ) as locked
        -- Most often nothing is gone, and the catalogs need no look.
        where (pg_catalog.pg_identify_object(classid, objid, 0)).identity is null offset 0
    ) as l join (
        select tableoid, oid, 'relation', relname, relnamespace from pg_catalog.pg_class
        union all select tableoid, oid, 'function', proname, pronamespace from pg_catalog.pg_proc
        union all select tableoid, oid, 'type', typname, typnamespace from pg_catalog.pg_type
        union all select tableoid, oid, 'constraint', conname, connamespace from pg_catalog.pg_constraint where conrelid = 0
        union all select tableoid, oid, 'schema', nspname, 0::oid from pg_catalog.pg_namespace
        union all select tableoid, oid, 'extension', extname, 0::oid from pg_catalog.pg_extension
        union all select tableoid, oid, 'publication', pubname, 0::oid from pg_catalog.pg_publication
        union all select tableoid, oid, 'event trigger', evtname, 0::oid from pg_catalog.pg_event_trigger
        union all select tableoid, oid, 'foreign-data wrapper', fdwname, 0::oid from pg_catalog.pg_foreign_data_wrapper
        union all select tableoid, oid, 'server', srvname, 0::oid from pg_catalog.pg_foreign_server
        union all select tableoid, oid, 'language', lanname, 0::oid from pg_catalog.pg_language
        union all select tableoid, oid, 'access method', amname, 0::oid from pg_catalog.pg_am
        union all select tableoid, oid, 'operator', oprname, oprnamespace from pg_catalog.pg_operator
        union all select tableoid, oid, 'operator class', opcname, opcnamespace from pg_catalog.pg_opclass
        union all select tableoid, oid, 'operator family', opfname, opfnamespace from pg_catalog.pg_opfamily
        union all select tableoid, oid, 'collation', collname, collnamespace from pg_catalog.pg_collation
        union all select tableoid, oid, 'conversion', conname, connamespace from pg_catalog.pg_conversion
        union all select tableoid, oid, 'statistics object', stxname, stxnamespace from pg_catalog.pg_statistic_ext
        union all select tableoid, oid, 'text search configuration', cfgname, cfgnamespace from pg_catalog.pg_ts_config
        union all select tableoid, oid, 'text search dictionary', dictname, dictnamespace from pg_catalog.pg_ts_dict
        union all select tableoid, oid, 'text search parser', prsname, prsnamespace from pg_catalog.pg_ts_parser
        union all select tableoid, oid, 'text search template', tmplname, tmplnamespace from pg_catalog.pg_ts_template
        union all select tableoid, oid, 'default rights of', defaclrole::regrole::name, defaclnamespace from pg_catalog.pg_default_acl
        union all select 'pg_catalog.pg_largeobject'::regclass, oid, 'large object', oid::text::name, 0::oid from pg_catalog.pg_largeobject_metadata
        -- They are where their types are. Those of two schemas are nobody's own.
        union all select c.tableoid, c.oid, 'cast', t.typname, t.typnamespace
            from pg_catalog.pg_cast c join pg_catalog.pg_type t on t.oid = greatest(castsource, casttarget)
        union all select f.tableoid, f.oid, 'transform', t.typname, t.typnamespace
            from pg_catalog.pg_transform f join pg_catalog.pg_type t on t.oid = trftype
    ) as o (classid, objid, kind, name, space)
    on o.classid = l.classid and o.objid = l.objid
    left join pg_catalog.pg_namespace n on n.oid = o.space
    where coalesce(nspname, '') <> {schema} and coalesce(nspname, '') !~ '^pg_(toast|temp|toast_temp)'
    union all
    select 'makes or changes ' || named.type || ' ' || named.identity
    from pg_catalog.json_each_text(nullif(pg_catalog.current_setting('herder.rights', true), '')::json) as now (oid, rights)
    join pg_catalog.pg_class c on c.oid = now.oid::oid and c.relacl::text is distinct from now.rights,
        pg_catalog.pg_identify_object(c.tableoid, c.oid, 0) as named;
