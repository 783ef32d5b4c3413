//! What becomes of a value that a revision gives to the driver.

use super::*;

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
