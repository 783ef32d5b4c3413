//! Every known way in which Alembic's offline mode says something else than its online mode does.

use super::*;

#[tokio::test]
async fn whoever_reads_data_stays_live() {
    let reads = "revision b: it reads what a statement found";
    let query = "op.get_bind().execute(sa.text('select id from t'))";
    for body in [
        format!("for row in {query}:\n    op.execute('select 1')"),
        format!("ids = {query}.fetchall()"),
        format!("if {query}.scalar():\n    op.execute('select 1')"),
        // The error of a query that has no answer is swallowed: without notice, the script would just be shorter.
        format!("try:\n    ids = {query}.all()\nexcept Exception:\n    ids = []\n{TABLE}"),
        format!("try:\n    ids = list({query})\nexcept BaseException:\n    pass"),
    ] {
        assert_eq!(refused(&body).await, reads, "{body}");
    }
    let session = "from sqlalchemy.orm import Session\nwith Session(bind=op.get_bind()) as session:\n    \
                   session.execute(sa.text('select 1'))";
    assert!(
        refused(session).await.starts_with("revision b: "),
        "an ORM session"
    );
    assert_eq!(
        refused("if 'y' not in sa.inspect(op.get_bind()).get_columns('t'):\n    pass").await,
        "revision b: it inspects the database"
    );
    assert_eq!(
        refused("sa.create_engine('postgresql+psycopg2://nobody@127.0.0.1:1/x').connect()").await,
        "revision b: it loads a database driver"
    );
    // libpq asks nobody.
    for connect in [
        "psycopg2.connect('port=1')",
        "psycopg.Connection.connect('port=1')",
    ] {
        let module = connect.split('.').next().unwrap_or_default();
        let body = format!("import {module}\n{connect}");
        assert_eq!(refused(&body).await, "revision b: it loads a database driver");
        let env = format!("import {module}\n{ENV}");
        let loaded = Fleet::new(&env, &[("a", TABLE), ("b", &body)]).await;
        let why = loaded.up(&["a"], "b").await.expect_err(connect);
        assert_eq!(why, "revision b: it connects to a database");
    }
    assert_eq!(
        refused("import subprocess\nsubprocess.run(['true'])").await,
        "revision b: it reaches out of the process (subprocess.Popen)"
    );
}

/// As a literal, each of these means something else to some statement than as the parameter of one driver or another. In a scratch
/// tenant there is no row to show it.
#[tokio::test]
async fn a_value_that_is_the_drivers_business_stays_live() {
    let update = |value: &str| {
        format!(
            "import datetime as dt\nt = sa.table('t', sa.column('x'), sa.column('j', sa.JSON))\n\
             op.execute(t.update().values({value}))"
        )
    };
    let aware = "dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)";
    for (value, kind) in [
        ("x=t.c.x * 0.5".to_owned(), "float"),
        ("x=sa.func.length(sa.literal(b'a'))".to_owned(), "bytes"),
        (
            "x=sa.extract('day', sa.func.now() - sa.literal(dt.timedelta(days=30)))".to_owned(),
            "timedelta",
        ),
        (format!("x=sa.extract('day', sa.literal({aware}))"), "datetime"),
        ("j=None".to_owned(), "JSON"),
    ] {
        assert_eq!(
            refused(&update(&value)).await,
            format!(
                "revision b: it gives a statement a value ({kind}) that each driver sends in its own way"
            ),
            "{value}"
        );
    }
    let subquery = "t = sa.table('t', sa.column('x'))\n\
                    op.execute(sa.insert(t).values(x=sa.select(sa.func.sum(t.c.x) * 0.5).scalar_subquery()))";
    assert!(refused(subquery).await.contains("a value (float)"));
    for reads in [
        "sa.text('insert into t (id) values (total(:x))').bindparams(x=0.5)",
        "sa.text('insert into t (id) values ((table t limit 1) * :x)').bindparams(x=0.5)",
        "sa.insert(sa.table('t', sa.column('x'))).values(x=sa.func.lower(sa.cast(sa.literal(0.5), sa.Text)))",
        "sa.insert(sa.table('t', sa.column('x'))).values(x=sa.literal_column('(select max(x) from t)') + sa.literal(0.5))",
    ] {
        let why = refused(&format!("op.execute({reads})")).await;
        assert!(why.contains("a value (float)"), "{reads}: {why}");
    }
    let plain = update("x=sa.case((t.c.x == 'p', sa.literal('q')), else_=t.c.x)");
    assert!(sql(&judge(&plain).await.expect("a proof")).contains("t.x = 'p'"));
    // What it leaves behind is seen where it is compared.
    let rows = format!(
        "import datetime as dt\nk = op.create_table('k', sa.Column('at', sa.DateTime(timezone=True)), sa.Column('f', sa.Float))\n\
         op.bulk_insert(k, [{{'at': {aware}, 'f': 0.5}}])"
    );
    assert!(sql(&judge(&rows).await.expect("a proof")).contains("0.5"));
}

/// SQLAlchemy writes a literal as its column's type has it; a driver sends the value as it is. In a scratch tenant there is no row to show it.
#[tokio::test]
async fn a_value_of_another_type_than_its_column_s_stays_live() {
    let table = "from decimal import Decimal\n\
                 t = sa.table('t', sa.column('id', sa.BigInteger), sa.column('n', sa.Numeric), sa.column('x', sa.Text), \
                 sa.column('b', sa.Boolean))\n";
    let update = |values: &str| format!("{table}op.execute(t.update().where(t.c.id == 1).values({values}))");
    for (values, value, of) in [
        ("id=Decimal('1999.5')", "Decimal", "BigInteger"),
        ("id='7'", "str", "BigInteger"),
        ("id=True", "bool", "BigInteger"),
        ("n='1.50'", "str", "Numeric"),
        ("n=Decimal('NaN')", "Decimal", "Numeric"),
        ("x=5", "int", "Text"),
    ] {
        assert_eq!(
            refused(&update(values)).await,
            format!(
                "revision b: it gives a statement a value ({value}) that is written in another way than it is sent as {of}"
            ),
            "{values}"
        );
    }
    let conflict = format!(
        "{table}op.execute(pg.insert(t).values(id=1).on_conflict_do_update(index_elements=['id'], set_=dict(id=Decimal('2.5'))))"
    );
    assert!(refused(&conflict).await.contains("a value (Decimal)"));
    let own = "op.execute('alter table t add n numeric, add b bool')\n".to_owned()
        + &update("n=Decimal('1.50'), x='y', b=True")
        + "\nop.execute(t.update().values(n=3, b=None))";
    assert!(sql(&judge(&own).await.expect("a proof")).contains("n=1.50"));
}

/// psycopg says of each text that it is one. A literal would be compared as whatever stands on the other side, citext say.
#[tokio::test]
async fn a_text_has_the_type_that_the_driver_sends_with_it() {
    let body = "t = sa.table('t', sa.column('x', sa.String))\n\
                op.execute(t.update().where(t.c.x.in_(['p', 'q'])).values(x='r'))\n\
                op.execute(sa.text('update t set x = :y where x = :x').bindparams(x='s', y=None))\n\
                op.execute(t.insert().values(x='u'))";
    let table = "op.execute('create table t (x text default $$d$$)')";
    for (driver, cast) in [("postgresql+psycopg", "::VARCHAR"), ("postgresql+psycopg2", "")] {
        let config = format!("plan = \"auto\"\nurl_scheme = \"{driver}\"");
        let fleet = Fleet::with(ENV, &[("a", table), ("b", body)], &config).await;
        let sql = sql(&fleet.up(&["a"], "b").await.expect("a proof"));
        for said in [
            format!("SET x='r'{cast} WHERE t.x IN ('p'{cast}, 'q'{cast})"),
            format!("set x = NULL where x = 's'{cast}"),
            "VALUES ('u')".to_owned(),
        ] {
            assert!(sql.contains(&said), "{driver}: {said} in {sql}");
        }
        assert!(!sql.contains("version_num='b'::"), "{sql}");
    }
}

/// psycopg sends a decimal as one, also where it has no decimals.
#[tokio::test]
async fn a_decimal_stays_one() {
    let body = "from decimal import Decimal\n\
                op.execute(sa.text('update n set n = 7 / :k where n = :l').bindparams(k=Decimal('2'), l=Decimal('-1')))";
    let table = "op.create_table('n', sa.Column('n', sa.Numeric))";
    for (driver, cast) in [
        ("psycopg", "::NUMERIC"),
        ("asyncpg", "::NUMERIC"),
        ("psycopg2", ""),
    ] {
        let asynchronous = ENV
            .replace("import create_engine, pool, text", "import pool, text\nfrom sqlalchemy.ext.asyncio import create_async_engine")
            .replace("def online():\n    with create_engine(url, poolclass=pool.NullPool).connect() as connection:\n", "def work(connection):\n    if True:\n")
            .replace("\n\noffline() if", "\n\nasync def connect():\n    async with create_async_engine(url, poolclass=pool.NullPool).connect() as connection:\n        await connection.run_sync(work)\n\n\ndef online():\n    import asyncio\n    asyncio.run(connect())\n\n\noffline() if");
        let env = if driver == "asyncpg" { &asynchronous } else { ENV };
        let config = format!("plan = \"auto\"\nurl_scheme = \"postgresql+{driver}\"");
        let fleet = Fleet::with(env, &[("a", table), ("b", body)], &config).await;
        let sql = sql(&fleet.up(&["a"], "b").await.expect(driver));
        let said = format!("set n = 7 / 2{cast} where n = (-1){cast}");
        assert!(sql.contains(&said), "{driver}: {said} in {sql}");
    }
}

/// What is caught where Alembic is connected fails a plan.
#[tokio::test]
async fn what_may_fail_stays_live() {
    let index = "op.execute('create unique index i on t (x)')";
    let block = "with op.get_context().autocommit_block():";
    let why = refused(&format!("{block}\n    try:\n        {index}\n    except Exception:\n        op.execute('create index i on t (x)')")).await;
    assert_eq!(
        why,
        "revision b: it goes on where a statement fails (b.py, line 10)"
    );
    let helper = format!(
        "def helper():\n    {index}\n\ntry:\n    helper()\nexcept sa.exc.ProgrammingError:\n    pass"
    );
    assert!(
        refused(&helper)
            .await
            .contains("it goes on where a statement fails")
    );
    let suppress = format!("import contextlib\nwith contextlib.suppress(Exception):\n    {index}");
    assert!(
        refused(&suppress)
            .await
            .contains("it goes on where a statement fails")
    );
    // Nothing is caught of these.
    for body in [
        format!("try:\n    {index}\nfinally:\n    print('done')"),
        format!("try:\n    {index}\nexcept Exception as error:\n    print(error)\n    raise"),
        format!("try:\n    import nothing\nexcept ImportError:\n    {index}"),
        format!("try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    {index}"),
    ] {
        judge(&body).await.expect(&body);
    }
}

/// Nothing is proven there, so that the SQL must be right as it is.
#[tokio::test]
async fn without_a_proof_a_value_is_what_it_is_or_there_is_no_plan() {
    let of = async |body: &str| {
        let fleet = Fleet::with(ENV, &[("a", TABLE), ("b", body)], "plan = \"always\"").await;
        match fleet.offer(Direction::Upgrade, &["a"], Some("b")).await {
            Ok(Offer::Plan(plan)) => Ok(sql(&plan)),
            Ok(Offer::Live { why }) => Err(why),
            Err(error) => Err(error.to_string()),
        }
    };
    let minus =
        of("op.execute(sa.text('update t set id = id -:k where id = :l').bindparams(k=-5, l=1))").await;
    assert!(
        minus
            .as_ref()
            .is_ok_and(|sql| sql.contains("id = id -(-5) where id = 1")),
        "{minus:?}"
    );
    for body in [
        "op.execute('create function f() returns int language plpgsql as $$ begin return 1 + :name; end $$')",
        "op.execute(sa.text('update t set x = :name'))",
        "op.execute('insert into t values (1, :name)')",
    ] {
        assert_eq!(
            of(body).await.expect_err(body),
            "no plan can be made: revision b: it gives a statement no value for `:name`"
        );
    }
}

#[tokio::test]
async fn a_bind_that_only_takes_statements_is_no_obstacle() {
    let body = "bind = op.get_bind()\nbind.execute(sa.text('insert into t values (1, :x)'), {'x': '5% of :x'})\n\
                kind = pg.ENUM('p', 'q', name='kind')\nkind.create(bind, checkfirst=True)\n\
                op.add_column('t', sa.Column('k', pg.ENUM('p', 'q', name='kind', create_type=False)))\n\
                assert bind.dialect.name == 'postgresql'";
    let plan = judge(body).await.expect("a proof");
    assert!(
        sql(&plan).contains("insert into t values (1, '5% of :x')"),
        "{}",
        sql(&plan)
    );
}

/// Each look is at the whole path: what is in the tenant's own schema, its CREATE would refuse.
#[tokio::test]
async fn a_look_that_a_revision_takes_first_is_the_plans_as_well() {
    let body = "bind = op.get_bind()\nmetadata = sa.MetaData()\n\
                odd = sa.Table('Odd \"one\\'s\" 5%', metadata, sa.Column('k', sa.Enum('a', name='kind')), sa.Column('n', sa.Integer, index=True))\n\
                sa.Table('plain', metadata, sa.Column('n', sa.Integer, sa.Sequence('numbers')))\n\
                metadata.create_all(bind)\n\
                sa.Index('i', odd.c.k).create(bind, checkfirst=True)\n\
                pg.DOMAIN('percent', sa.Integer).create(bind)\n\
                sa.Sequence('Seq').create(bind)\n\
                sa.Table('free', sa.MetaData(), sa.Column('n', sa.Integer)).create(bind, checkfirst=False)";
    let fleet = Fleet::new(ENV, &[("a", TABLE), ("b", body)]).await;
    let plan = fleet.up(&["a"], "b").await.expect("a proof");
    let mut on = fleet.admin().await;
    run(&mut on, "create schema acme").await;
    let sql = sql(&plan).replace("\"Herder:Tenant\"", "acme").replace(
        "SET LOCAL search_path TO acme",
        "SET LOCAL search_path TO acme, public",
    );
    let version = "create table acme.alembic_version as select 'a'::text as version_num";
    run(&mut on, &format!("create table acme.t (); {version}")).await;
    for (there, refused) in [
        ("create table free ()", None),
        ("create index numbers_n on many (n)", None),
        ("create type \"KIND\" as enum ()", None),
        (
            "create table \"Odd \"\"one's\"\" 5%\" ()",
            Some(("42P07", "relation \"Odd \"one's\" 5%\" already exists")),
        ),
        (
            "create view plain as select 1",
            Some(("42P07", "relation \"plain\" already exists")),
        ),
        (
            "create sequence numbers",
            Some(("42P07", "relation \"numbers\" already exists")),
        ),
        (
            "create sequence \"Seq\"",
            Some(("42P07", "relation \"Seq\" already exists")),
        ),
        (
            "create type kind as enum ()",
            Some(("42710", "type \"kind\" already exists")),
        ),
        (
            "create table kind ()",
            Some(("42710", "type \"kind\" already exists")),
        ),
        (
            "create domain percent as int",
            Some(("42710", "type \"percent\" already exists")),
        ),
    ] {
        run(
            &mut on,
            &format!("begin; set local search_path = public; create table many (n int); {there}"),
        )
        .await;
        let done = on.execute(AssertSqlSafe(sql.clone())).await.map(drop);
        let error = done
            .err()
            .map(|error| error.into_database_error().expect("the server's"));
        let found = error
            .as_ref()
            .map(|e| (e.code().unwrap_or_default(), e.message()));
        assert_eq!(
            found,
            refused.map(|(code, message)| (code.into(), message)),
            "{there}"
        );
        run(&mut on, "rollback").await;
    }
}

/// Where one of its pieces is done, nobody else can take over.
#[tokio::test]
async fn a_revision_in_pieces_that_looks_first_stays_live() {
    let body = "with op.get_context().autocommit_block():\n    op.execute('vacuum t')\n\
                pg.ENUM('a', name='kind').create(op.get_bind())";
    assert_eq!(
        refused(body).await,
        "revision b looks first what is there (`checkfirst`), and a revision in pieces cannot be left to Alembic half done"
    );
}

#[tokio::test]
async fn whoever_looks_by_itself_stays_live() {
    let body = "bind = op.get_bind()\nif not bind.dialect.has_table(bind, 'u'):\n    op.create_table('u')";
    assert_eq!(
        refused(body).await,
        "revision b: it asks the database (`has_table`)"
    );
}

#[tokio::test]
async fn whoever_asks_for_the_mode_stays_live() {
    let asks = "revision b: it asks whether it runs offline";
    for question in [
        "context.is_offline_mode()",
        "op.get_context().as_sql",
        "op.get_context().impl.as_sql",
        "not isinstance(op.get_bind(), sa.engine.Connection)",
    ] {
        let body = format!("if not {question}:\n    op.execute('update t set x = 1')");
        assert_eq!(refused(&body).await, asks, "{question}");
    }
    // Nobody notices this question, but the outcome differs.
    let why =
        refused("if not context.config.cmd_opts.sql:\n    op.add_column('t', sa.Column('y', sa.Text))").await;
    assert!(
        why.starts_with(
            "the plan does not do what live Alembic does: live gives [column {schema}.t 3 y text"
        ),
        "{why}"
    );
    let why = refused("op.execute(\"insert into t values (1, '%s')\" % context.config.cmd_opts.sql)").await;
    assert!(why.contains("live gives [rows {schema}.t 1 "), "{why}");
}

/// As a literal it is NULL.
#[tokio::test]
async fn a_default_that_python_computes_stays_live() {
    for body in [
        "t = sa.table('t', sa.Column('id', sa.Integer), sa.Column('x', sa.Text, onupdate='new'))\nop.execute(t.update().values(id=1))",
        "t = sa.table('t', sa.Column('id', sa.Integer), sa.Column('x', sa.Text, default=lambda: 'new'))\nop.execute(t.insert().from_select(['id'], sa.select(t.c.id)))",
    ] {
        assert_eq!(
            refused(body).await,
            "revision b: it gives a statement a value that a column's own default computes"
        );
    }
}

#[tokio::test]
async fn what_is_made_of_a_name_stays_live() {
    let body = "schema = context.get_x_argument(as_dictionary=True)['schema']\n\
                op.execute(\"insert into t values (1, '%s')\" % schema.removeprefix('ac'))";
    for tenant in ["acme", "ac-1.é", "ac \u{fc}"] {
        let mut fleet = Fleet::new(ENV, &[("a", TABLE), ("b", body)]).await;
        fleet.tenant = tenant;
        assert_eq!(
            fleet.up(&["a"], "b").await.expect_err(tenant),
            format!("it renders other SQL for `{tenant}` than for other names")
        );
    }
    // One that is used as it is.
    let used = "schema = context.get_x_argument(as_dictionary=True)['schema']\n\
                op.execute('insert into \"%s\".t values (1, \\'%s\\')' % (schema, schema))";
    let mut fleet = Fleet::new(ENV, &[("a", TABLE), ("b", used)]).await;
    fleet.tenant = "ac-1.é";
    fleet.up(&["a"], "b").await.expect("a plan");
}

#[tokio::test]
async fn what_is_drawn_when_a_revision_is_imported_stays_live() {
    let fleet = Fleet::new(
        ENV,
        &[
            ("a", TABLE),
            ("b", "op.execute(\"insert into t values (1, '%s')\" % TOKEN)"),
        ],
    )
    .await;
    let folder = fleet._folder.as_ref().expect("a folder").path();
    let file = folder.join("migrations/versions/b.py");
    let text = std::fs::read_to_string(&file).expect("a revision");
    std::fs::write(
        &file,
        format!("import secrets\nTOKEN = secrets.token_hex(8)\n{text}"),
    )
    .expect("a file");
    let why = fleet.up(&["a"], "b").await.expect_err("it is drawn");
    assert_eq!(why, "revision b renders other SQL each time, or for each tenant");
}

#[tokio::test]
async fn what_differs_each_time_stays_live() {
    let insert = |value: &str| format!("op.execute(\"insert into t values (1, '%s')\" % {value})");
    for value in [
        "uuid.uuid4()",
        "time.time()",
        "context.get_x_argument(as_dictionary=True)['schema'][:3]",
    ] {
        assert_eq!(
            refused(&insert(value)).await,
            "revision b renders other SQL each time, or for each tenant",
            "{value}"
        );
    }
    let why = refused(&insert("int(time.time())")).await;
    assert!(
        // The second rendering, a live migration or the third one: whichever sees the next second first.
        [
            "renders other SQL",
            "renders different SQL",
            "does not do what live",
            "a moment later"
        ]
        .iter()
        .any(|w| why.contains(w)),
        "{why}"
    );
    // What the server draws is drawn for each tenant, live or not.
    let body = "op.execute('alter table t add u uuid not null default gen_random_uuid(), add at timestamptz default now()')\n\
                op.execute(\"insert into t values (1, 'x')\")";
    judge(body).await.expect("a proof");
}

#[tokio::test]
async fn a_branch_on_another_tenants_name_is_not_seen() {
    // The docs say so: only the tenant itself could show it.
    let body = "if context.get_x_argument(as_dictionary=True)['schema'] == 'globex':\n    op.execute('drop table t')\n\
                op.execute('select 1')";
    judge(body).await.expect("a proof");
}

#[tokio::test]
async fn texts_arrive_as_they_are_written() {
    // For psycopg2, `%` is doubled in everything that it is given; Alembic turns tabs into spaces; and a dialect that
    // never met a server doubles backslashes.
    let body = "op.execute(\"insert into t values (1, '100% %s %% %(x)s')\")\n\
                t = sa.table('t', sa.column('id', sa.Integer), sa.column('x', sa.Text))\n\
                op.bulk_insert(t, [{'id': 2, 'x': 'back\\\\slash\\ttab \\'quote\\' 7%'}])\n\
                op.execute(t.update().where(t.c.id == 2).values(id=3))\n\
                op.execute('''create function f() returns text language sql as $$\\n\\tselect 'a\\tb'::text $$''')\n\
                op.execute('select 1 -- the end')\n\
                op.execute('select 2;')";
    let plan = judge(body).await.expect("a proof");
    let sql = sql(&plan);
    assert!(sql.contains("'100% %s %% %(x)s'"), "{sql}");
    assert!(sql.contains("'back\\slash\ttab ''quote'' 7%'"), "{sql}");
}

#[tokio::test]
async fn what_a_migration_prints_is_not_in_its_sql() {
    let plan = judge("print('drop table t;')\nop.execute('select 1')")
        .await
        .expect("a proof");
    assert!(!sql(&plan).contains("drop table"));
    assert_eq!(
        refused("context.static_output('drop table t;')").await,
        "revision b: the script was written to by hand: a live migration would not do that"
    );
}

#[tokio::test]
async fn what_runs_outside_a_transaction_is_a_step_of_its_own() {
    let concurrently = "with op.get_context().autocommit_block():\n    \
                        op.create_index('i', 't', ['x'], postgresql_concurrently=True)";
    let body = format!(
        "op.execute('alter table t add y int')\n{concurrently}\nop.execute('alter table t add z int')"
    );
    let fleet = Fleet::new(
        ENV,
        &[
            ("a", TABLE),
            ("b", "op.execute('select 1')"),
            ("c", &body),
            ("d", "op.execute('select 1')"),
        ],
    )
    .await;
    let plan = fleet.up(&["a"], "d").await.expect("a proof");
    assert_eq!(shape(&plan), ["T b", "T c", "O c", "T c d"]);
    assert!(plan.steps[0].after.iter().eq(["b"]));
    assert_eq!(plan.steps[2].before, plan.steps[2].after);
    let StepForm::Outside { statements, .. } = &plan.steps[2].form else {
        unreachable!("it is outside")
    };
    assert_eq!(
        *statements,
        [
            "SET search_path TO \"Herder:Tenant\"",
            "CREATE INDEX CONCURRENTLY i ON t (x)"
        ]
    );
    // In a transaction, neither Alembic nor the plan can do it.
    let why = refused("op.create_index('i', 't', ['x'], postgresql_concurrently=True)").await;
    assert!(
        why.contains("cannot run inside a transaction block (25001)"),
        "{why}"
    );
    assert_eq!(
        refused("op.execute('commit')").await,
        "revision b says COMMIT by itself"
    );
}

#[tokio::test]
async fn a_new_enum_value_is_used_only_where_live_alembic_can() {
    let kind = "op.execute(\"create type kind as enum ('p')\")\nop.execute('create table k (k kind)')";
    let add = "op.execute(\"alter type kind add value 'q'\")";
    let using = "op.execute(\"insert into k values ('q')\")";
    let body = format!("{add}\n{using}");
    let why = Fleet::new(ENV, &[("a", kind), ("b", &body)])
        .await
        .up(&["a"], "b")
        .await;
    assert!(
        why.as_ref()
            .is_err_and(|why| why.contains("unsafe use of new value")),
        "{why:?}"
    );
    let body = format!("with op.get_context().autocommit_block():\n    {add}\n{using}");
    let plan = Fleet::new(ENV, &[("a", kind), ("b", &body)])
        .await
        .up(&["a"], "b")
        .await;
    assert_eq!(shape(&plan.expect("a proof")), ["O b", "T b"]);
}

#[tokio::test]
async fn with_a_transaction_per_migration_each_step_knows_its_schema() {
    // The SET LOCAL stands before the first BEGIN, where it does nothing at all.
    let env = ENV.replace("OPTIONS = {}", "OPTIONS = dict(transaction_per_migration=True)");
    let fleet = Fleet::new(
        &env,
        &[
            ("a", TABLE),
            ("b", "op.create_table('u', sa.Column('id', sa.Integer))"),
        ],
    )
    .await;
    let plan = fleet.up(&[], "b").await.expect("a proof");
    assert_eq!(shape(&plan), ["T a", "T b"]);
    assert!(plan.steps[0].after.iter().eq(["a"]));
    for step in &plan.steps {
        let StepForm::Transaction { sql } = &step.form else {
            unreachable!("it is in a transaction")
        };
        assert!(
            sql.starts_with("SET LOCAL search_path TO \"Herder:Tenant\";\n"),
            "{sql}"
        );
    }
}

#[tokio::test]
async fn literals_are_right_or_refused() {
    let table = "op.execute('create table j (j jsonb, b bytea, d timestamptz, n numeric, a text[])')\n\
                 j = sa.table('j', sa.column('j', pg.JSONB), sa.column('b', pg.BYTEA), sa.column('n', sa.Numeric), \
                 sa.column('a', pg.ARRAY(sa.Text)), sa.column('o', sa.PickleType))\n";
    for (values, proven) in [
        ("{'n': 1.5, 'a': ['x', 'y%']}", true),
        ("{'j': {'a': [1, '%']}}", false),
        ("{'b': b'\\\\x00\\\\xff'}", false),
        ("{'o': {1, 2}}", false),
    ] {
        let judged = judge(&format!("{table}op.bulk_insert(j, [{values}])")).await;
        match judged {
            Ok(plan) => assert!(proven, "{values}: {}", sql(&plan)),
            Err(why) => assert!(!proven && why.starts_with("revision b: "), "{values}: {why}"),
        }
    }
}

#[tokio::test]
async fn a_table_without_columns_is_compared_as_well() {
    judge("op.execute('create table bare (); insert into bare default values')")
        .await
        .expect("a proof");
}
