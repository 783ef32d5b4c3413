-- What a schema is, one line for each thing in it: $1 is its name; '' means all schemas that are not PostgreSQL's own.
-- Names of other schemas stand in full, because search_path is empty. What belongs to an extension is the extension's.
with ns as (
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
)
select line from (
    select concat_ws(' ', 'schema', n.nspname, 'owner', s.nspowner::regrole, 'acl', s.nspacl::text,
                     'comment', obj_description(s.oid, 'pg_namespace')) as line
    from ns n join pg_namespace s using (oid)
union all
    select concat_ws(' ', 'relation', r.name, 'kind', r.relkind, r.relpersistence, 'owner', r.relowner::regrole,
                     'acl', r.relacl::text, 'options', r.reloptions::text, 'rls', r.relrowsecurity, r.relforcerowsecurity,
                     'identity', r.relreplident, 'am', a.amname, 'tablespace', r.reltablespace,
                     'partition', r.relispartition, pg_get_partkeydef(r.oid), pg_get_expr(r.relpartbound, r.oid),
                     'comment', obj_description(r.oid, 'pg_class'),
                     'view', case when r.relkind in ('v', 'm') then pg_get_viewdef(r.oid) end)
    from rel r left join pg_am a on a.oid = r.relam
    where r.relkind not in ('i', 'I', 't')
union all
    select concat_ws(' ', 'inherits', r.name, i.inhseqno, i.inhparent::regclass)
    from rel r join pg_inherits i on i.inhrelid = r.oid
union all
    select concat_ws(' ', 'column', r.name, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
                     'not null', a.attnotnull, 'default', pg_get_expr(d.adbin, d.adrelid), 'identity', a.attidentity,
                     'generated', a.attgenerated, 'collation', a.attcollation::regcollation, 'acl', a.attacl::text,
                     'storage', a.attstorage, 'compression', to_jsonb(a) ->> 'attcompression', 'options', a.attoptions::text,
                     'statistics', a.attstattarget, 'local', a.attislocal, a.attinhcount,
                     'comment', col_description(r.oid, a.attnum))
    from rel r join pg_attribute a on a.attrelid = r.oid
    left join pg_attrdef d on d.adrelid = r.oid and d.adnum = a.attnum
    where a.attnum > 0 and r.relkind in ('r', 'p', 'v', 'm', 'f', 'c') and not a.attisdropped
union all
    select concat_ws(' ', 'constraint', coalesce(r.name, t.name), k.conname, k.contype, pg_get_constraintdef(k.oid),
                     'validated', k.convalidated, 'no inherit', k.connoinherit,
                     'comment', obj_description(k.oid, 'pg_constraint'))
    from pg_constraint k left join rel r on r.oid = k.conrelid left join typ t on t.oid = k.contypid
    where r.oid is not null or t.oid is not null
union all
    select concat_ws(' ', 'index', pg_get_indexdef(i.indexrelid), 'of', r.name, 'valid', i.indisvalid, i.indisready,
                     i.indislive, 'primary', i.indisprimary, 'identity', i.indisreplident, 'clustered', i.indisclustered,
                     'comment', obj_description(i.indexrelid, 'pg_class'))
    from pg_index i join rel r on r.oid = i.indrelid
    where r.relkind <> 't'
union all
    select concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled,
                     'comment', obj_description(t.oid, 'pg_trigger'))
    from pg_trigger t join rel r on r.oid = t.tgrelid
    where not t.tgisinternal
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
                     case when f.prokind <> 'a' then pg_get_functiondef(f.oid) end,
                     'comment', obj_description(f.oid, 'pg_proc'))
    from fn f
union all
    select concat_ws(' ', 'type', t.name, t.typtype, 'owner', t.typowner::regrole, 'acl', t.typacl::text,
                     'labels', (select string_agg(e.enumlabel, ',' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid),
                     'base', case when t.typtype = 'd' then format_type(t.typbasetype, t.typtypmod) end,
                     'not null', t.typnotnull, 'default', t.typdefault, 'collation', t.typcollation::regcollation,
                     'range', (select format_type(g.rngsubtype, null) from pg_range g where g.rngtypid = t.oid),
                     'comment', obj_description(t.oid, 'pg_type'))
    from typ t
union all
    select concat_ws(' ', 'default privileges', n.nspname, d.defaclrole::regrole, d.defaclobjtype, d.defaclacl::text)
    from pg_default_acl d join ns n on n.oid = d.defaclnamespace
union all
    select concat_ws(' ', 'publication', p.pubname, r.name)
    from pg_publication_rel l join pg_publication p on p.oid = l.prpubid join rel r on r.oid = l.prrelid
union all
    select concat_ws(' ', 'operator', o.oid::regoperator) from pg_operator o join ns n on n.oid = o.oprnamespace
    where o.oid not in (select objid from extension where classid = 'pg_operator'::regclass)
union all
    select concat_ws(' ', 'operator class', n.nspname, o.opcname, o.opcintype::regtype)
    from pg_opclass o join ns n on n.oid = o.opcnamespace
    where o.oid not in (select objid from extension where classid = 'pg_opclass'::regclass)
union all
    select concat_ws(' ', 'collation', n.nspname, c.collname, c.collcollate, c.collctype)
    from pg_collation c join ns n on n.oid = c.collnamespace
union all
    select concat_ws(' ', 'text search', n.nspname, t.cfgname) from pg_ts_config t join ns n on n.oid = t.cfgnamespace
union all
    -- What belongs to the database is looked at in any case.
    select concat_ws(' ', 'schema of the database', nspname) from pg_namespace
    where nspname !~ '^pg_(toast_)?temp' and nspname !~ '^herder_shadow_'
union all
    select concat_ws(' ', 'extension', e.extname, e.extversion, e.extnamespace::regnamespace) from pg_extension e
union all
    select concat_ws(' ', 'event trigger', evtname, evtevent, evtenabled) from pg_event_trigger
union all
    select concat_ws(' ', 'published', pubname, puballtables) from pg_publication
union all
    select concat_ws(' ', 'cast', format_type(castsource, null), format_type(casttarget, null)) from pg_cast where oid >= 16384
) as lines
order by line collate "C"
