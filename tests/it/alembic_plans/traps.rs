//! Every known way in which Alembic's offline mode says something else than its online mode does, but for values.

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
async fn a_table_without_columns_is_compared_as_well() {
    judge("op.execute('create table bare (); insert into bare default values')")
        .await
        .expect("a proof");
}
