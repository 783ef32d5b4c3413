-- What a schema is, one line for each thing in it: $1 is its name; '' means all schemas that are not PostgreSQL's own.
-- Names of other schemas stand in full, because search_path is empty. What belongs to an extension is the extension's.
with recursive ns as (
    select oid, nspname from pg_namespace
    where case when $1 = '' then nspname !~ '^pg_' and nspname <> 'information_schema' else nspname = $1 end
),
extension as (select classid, objid from pg_depend where deptype = 'e'),
rel as (
    select c.*, n.nspname || '.' || c.relname as name
    from pg_class c join ns n on n.oid = c.relnamespace
    where (c.oid) not in (select objid from extension where classid = 'pg_class'::regclass)
),
typ as (
    select t.*, n.nspname || '.' || t.typname as name
    from pg_type t join ns n on n.oid = t.typnamespace
    where t.oid not in (select objid from extension where classid = 'pg_type'::regclass)
),
fn as (
    select p.*, n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' as name
    from pg_proc p join ns n on n.oid = p.pronamespace
    where p.oid not in (select objid from extension where classid = 'pg_proc'::regclass)
),
-- Everything in the schemas, of whatever kind, with all its parts: it hangs on them.
inside (classid, objid) as (
    select 'pg_namespace'::regclass::oid, oid from ns
    union
    select d.classid, d.objid from inside i join pg_depend d on d.refclassid = i.classid and d.refobjid = i.objid
    where (d.deptype in ('a', 'i', 'P', 'S') or d.deptype = 'n' and d.refclassid = 'pg_namespace'::regclass)
      and (d.classid, d.objid) not in (select classid, objid from extension)
),
-- What belongs to the database is looked at in any case. Below 16384, it is PostgreSQL's own.
global (classid, objid, content) as (
    select tableoid, oid, to_jsonb(x) from pg_extension x
    union all select tableoid, oid, to_jsonb(x) from pg_event_trigger x
    union all select tableoid, oid, to_jsonb(x) from pg_publication x
    union all select tableoid, oid, to_jsonb(x) from pg_foreign_data_wrapper x
    union all select tableoid, oid, to_jsonb(x) from pg_foreign_server x
    union all select tableoid, oid, to_jsonb(x) from pg_default_acl x where defaclnamespace = 0
    union all select tableoid, oid, to_jsonb(x) from pg_cast x where oid >= 16384
    union all select tableoid, oid, to_jsonb(x) from pg_transform x where oid >= 16384
    union all select tableoid, oid, to_jsonb(x) from pg_language x where oid >= 16384
    union all select tableoid, oid, to_jsonb(x) from pg_am x where oid >= 16384
),
thing (classid, objid) as (
    select classid, objid from inside
    union select classid, objid from global where (classid, objid) not in (select classid, objid from extension)
),
-- The row itself, for kinds that PostgreSQL gives no definition of: with all the columns that its version has.
content (classid, objid, catalog, content) as (
    select 'pg_proc'::regclass, oid, tableoid, to_jsonb(x) from pg_proc x where prokind = 'a' and oid >= 16384
    union all select 'pg_proc'::regclass, aggfnoid, tableoid, to_jsonb(x) from pg_aggregate x where aggfnoid::oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_type x where typnamespace in (select oid from ns)
    union all select 'pg_type'::regclass, rngtypid, tableoid, to_jsonb(x) from pg_range x where rngtypid in (select oid from typ)
    union all select 'pg_class'::regclass, ftrelid, tableoid, to_jsonb(x) from pg_foreign_table x
    union all select 'pg_ts_config'::regclass, mapcfg, tableoid, to_jsonb(x) from pg_ts_config_map x where mapcfg >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_ts_config x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_ts_dict x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_ts_parser x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_ts_template x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_operator x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_opclass x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_opfamily x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_amop x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_amproc x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_collation x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_conversion x where oid >= 16384
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_statistic_ext x where stxnamespace in (select oid from ns)
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_publication_rel x where prrelid in (select oid from rel)
    union all select tableoid, oid, tableoid, to_jsonb(x) from pg_default_acl x where defaclnamespace in (select oid from ns)
    union all select classid, objid, classid, content from global
),
-- In full before anything is asked about them, which costs far more than to read them.
wanted as materialized (select content.* from content join thing using (classid, objid)),
commented as materialized (
    select d.* from pg_description d join thing t on t.classid = d.classoid and t.objid = d.objoid
),
-- Which columns hold the numbers of other rows. They are others each time.
pointer as materialized (
    select fktable, fkcols[1] as col, pktable from pg_get_catalog_foreign_keys() where pkcols = '{oid}'
),
lines as materialized (
    select concat_ws(' ', 'schema', n.nspname, 'owner', s.nspowner::regrole, 'acl', s.nspacl::text) as line
    from ns n join pg_namespace s using (oid)
union all
    select concat_ws(' ', 'relation', r.name, 'kind', r.relkind, r.relpersistence, 'owner', r.relowner::regrole,
                     'acl', r.relacl::text, 'options', r.reloptions::text, 'rls', r.relrowsecurity, r.relforcerowsecurity,
                     'identity', r.relreplident, 'am', a.amname, 'tablespace', r.reltablespace,
                     'partition', r.relispartition, pg_get_partkeydef(r.oid), pg_get_expr(r.relpartbound, r.oid),
                     'toast', t.reloptions::text, 'of', nullif(r.reloftype, 0)::regtype, 'populated', r.relispopulated,
                     'view', case when r.relkind in ('v', 'm') then pg_get_viewdef(r.oid) end)
    from rel r left join pg_am a on a.oid = r.relam left join pg_class t on t.oid = r.reltoastrelid
    where r.relkind not in ('i', 'I', 't')
union all
    select concat_ws(' ', 'inherits', r.name, i.inhseqno, i.inhparent::regclass)
    from rel r join pg_inherits i on i.inhrelid = r.oid
union all
    select concat_ws(' ', 'column', r.name, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
                     'not null', a.attnotnull, 'default', pg_get_expr(d.adbin, d.adrelid), 'identity', a.attidentity,
                     'generated', a.attgenerated, 'collation', a.attcollation::regcollation, 'acl', a.attacl::text,
                     'storage', a.attstorage, 'compression', to_jsonb(a) ->> 'attcompression', 'options', a.attoptions::text,
                     a.attfdwoptions::text, 'statistics', a.attstattarget, 'local', a.attislocal, a.attinhcount)
    from rel r join pg_attribute a on a.attrelid = r.oid
    left join pg_attrdef d on d.adrelid = r.oid and d.adnum = a.attnum
    where a.attnum > 0 and r.relkind in ('r', 'p', 'v', 'm', 'f', 'c') and not a.attisdropped
union all
    select concat_ws(' ', 'constraint', coalesce(r.name, t.name), k.conname, k.contype, pg_get_constraintdef(k.oid),
                     'validated', k.convalidated, 'no inherit', k.connoinherit)
    from pg_constraint k left join rel r on r.oid = k.conrelid left join typ t on t.oid = k.contypid
    where r.oid is not null or t.oid is not null
union all
    select concat_ws(' ', 'index', pg_get_indexdef(i.indexrelid), 'of', r.name, 'valid', i.indisvalid, i.indisready,
                     i.indislive, 'primary', i.indisprimary, 'identity', i.indisreplident, 'clustered', i.indisclustered,
                     'tablespace', c.reltablespace, 'statistics',
                     (select array_agg(a.attstattarget order by a.attnum)::text from pg_attribute a where a.attrelid = c.oid))
    from pg_index i join rel r on r.oid = i.indrelid join pg_class c on c.oid = i.indexrelid
    where r.relkind <> 't'
union all
    select concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled)
    from pg_trigger t join rel r on r.oid = t.tgrelid
    where not t.tgisinternal
union all
    -- A foreign key's, on both its tables. Their own names are numbers.
    select concat_ws(' ', 'trigger of constraint', k.conname, 'on', t.tgrelid::regclass, t.tgfoid::regproc,
                     'enabled', t.tgenabled)
    from inside i join pg_trigger t on i.classid = 'pg_trigger'::regclass and i.objid = t.oid
    join pg_constraint k on k.oid = t.tgconstraint
    where t.tgisinternal
union all
    select concat_ws(' ', 'rule', pg_get_ruledef(w.oid), 'enabled', w.ev_enabled)
    from pg_rewrite w join rel r on r.oid = w.ev_class
    where w.rulename <> '_RETURN'
union all
    select concat_ws(' ', 'policy', r.name, p.polname, p.polcmd, 'permissive', p.polpermissive, 'to', p.polroles::regrole[]::text,
                     'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid))
    from pg_policy p join rel r on r.oid = p.polrelid
union all
    select concat_ws(' ', 'statistics', pg_get_statisticsobjdef(s.oid))
    from pg_statistic_ext s join ns n on n.oid = s.stxnamespace
union all
    select concat_ws(' ', 'sequence', r.name, format_type(s.seqtypid, null), s.seqstart, s.seqincrement, s.seqmin, s.seqmax,
                     s.seqcache, s.seqcycle, 'owned by', d.refobjid::regclass, d.refobjsubid, d.deptype)
    from rel r join pg_sequence s on s.seqrelid = r.oid
    left join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = r.oid and d.deptype in ('a', 'i')
                         and d.refclassid = 'pg_class'::regclass
union all
    select concat_ws(' ', 'function', f.name, f.prokind, 'owner', f.proowner::regrole, 'acl', f.proacl::text,
                     case when f.prokind <> 'a' then pg_get_functiondef(f.oid) end)
    from fn f
union all
    select concat_ws(' ', 'labels', t.name, string_agg(e.enumlabel, ',' order by e.enumsortorder))
    from typ t join pg_enum e on e.enumtypid = t.oid
    group by t.name
union all
    -- Which tables somebody publishes, with which of their columns and rows.
    select concat_ws(' ', 'published', to_jsonb(p)::text) from pg_publication_tables p join ns n on n.nspname = p.schemaname
union all
    select concat_ws(' ', w.catalog::regclass, (
        select string_agg(v.key || '=' || coalesce(named.words, v.value), ' ' order by v.key)
        from jsonb_each_text(w.content) as v (key, value)
        -- An expression's inner form is full of numbers as well; its text is elsewhere.
        join pg_attribute a on a.attrelid = w.catalog and a.attname = v.key and a.atttypid <> 'pg_node_tree'::regtype
        left join pointer p on p.fktable = w.catalog and p.col = v.key
        cross join lateral (
            select string_agg(coalesce((pg_identify_object(p.pktable, number[1]::oid, 0)).identity, number[1]), ',' order by place)
            from regexp_matches(v.value, '\d+', 'g') with ordinality as numbers (number, place)
            where p.pktable is not null and v.value !~ '[^][0-9", ]'
        ) as named (words)
        where v.key <> 'oid'
    ))
    from wanted w
union all
    -- Whatever else there is, at least by name; some names are numbers.
    select concat_ws(' ', 'object', (o).type, (o).identity)
    from (select pg_identify_object(classid, objid, 0) as o from thing) as named
    where (o).identity !~ '(^pg_toast\.|RI_ConstraintTrigger_|Unique_ConstraintTrigger_|PK_ConstraintTrigger_|Exclusion_ConstraintTrigger_|pg_toast_\d)'
union all
    select concat_ws(' ', 'comment on', (o).type, (o).identity, description)
    from (select pg_identify_object(classoid, objoid, objsubid) as o, description from commented) as named
union all
    select concat_ws(' ', 'label of', (o).type, (o).identity, provider, label)
    from (
        select pg_identify_object(classoid, objoid, objsubid) as o, provider, label
        from pg_seclabel join thing on classid = classoid and objid = objoid
    ) as labelled
union all
    select concat_ws(' ', 'schema of the database', nspname) from pg_namespace
    where nspname !~ '^pg_(toast_)?temp'
union all
    select concat_ws(' ', 'user mapping', usename, srvname, umoptions::text) from pg_user_mappings
union all
    select concat_ws(' ', 'database', 'owner', datdba::regrole, 'acl', datacl::text, 'limit', datconnlimit,
                     'comment', shobj_description(oid, 'pg_database'))
    from pg_database where datname = current_database()
union all
    select concat_ws(' ', 'settings of', nullif(setrole, 0)::regrole, setconfig::text)
    from pg_db_role_setting join pg_database d on d.oid = setdatabase where datname = current_database()
union all
    -- Their numbers are drawn. Where the database is not the tenant's alone, others draw them all the time.
    select concat_ws(' ', 'large object', 'owner', lomowner::regrole, 'acl', lomacl::text) from pg_largeobject_metadata
    where $1 = ''
)
select line from lines
-- Two scratch schemas stand side by side, and neither is to see the other.
where line !~ 'herder_shadow_' or $1 <> 'public' and strpos(line, $1) > 0
order by line collate "C"
