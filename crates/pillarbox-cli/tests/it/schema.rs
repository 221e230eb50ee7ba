//! `migrate`, `uninstall`.

use anyhow::{Result, ensure};
use pillarbox_relay::schema;
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, Postgres};
use tokio_postgres::error::SqlState;

use crate::program::{Program, connect, database, unique};

/// Everything about the schema that the catalogs know.
const DESCRIBE: &str = "
    select 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
        || ' ' || a.attnotnull || ' ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
        || ' ' || coalesce(a.attacl::text, '') as line
    from pg_attribute a join pg_class c on c.oid = a.attrelid
    left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace = 'pillarbox'::regnamespace and a.attnum > 0
    union all
    select 'relation ' || c.relname || ' ' || c.relkind::text || ' ' || coalesce(c.reloptions::text, '')
        || ' ' || coalesce(c.relacl::text, '') || ' ' || c.relowner::regrole::text
    from pg_class c where c.relnamespace = 'pillarbox'::regnamespace
    union all
    select 'constraint ' || conname || ' ' || pg_get_constraintdef(oid) from pg_constraint
    where connamespace = 'pillarbox'::regnamespace
    union all
    select 'function ' || pg_get_functiondef(oid) || coalesce(proacl::text, '') from pg_proc
    where pronamespace = 'pillarbox'::regnamespace
    union all
    select 'version ' || version from pillarbox.schema_version
    union all
    select 'setting ' || s::text from pillarbox.settings s
    order by 1";

async fn describe(url: &str) -> Result<Vec<String>> {
    let rows = connect(url).await?.query(DESCRIBE, &[]).await?;
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(lines.len() > 100, "only {} lines", lines.len());
    Ok(lines)
}

#[tokio::test]
async fn migrate_installs_once_and_print_is_what_it_applies() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V18] {
        let (postgres, program, url) = database(version).await?;
        let first = program.run(&["migrate"]).await?;
        assert_eq!(first.code, 0, "{first:?}");
        assert!(first.out.contains("installed") && first.err.contains("pillarbox grant"));
        let second = program.json(&["migrate"]).await?;
        assert_eq!(second["result"], "up-to-date");
        let other = postgres.create_database(&unique("print")).await?;
        let script = program.done(&["migrate", "--print"]).await?;
        connect(&other).await?.batch_execute(&script).await?;
        assert_eq!(describe(&url).await?, describe(&other).await?);
    }
    Ok(())
}

#[tokio::test]
async fn eight_migrations_at_once_install_once() -> Result<()> {
    let (postgres, program, url) = database(PgVersion::V15).await?;
    let other_url = postgres.create_database(&unique("other")).await?;
    let other = Program::on(&other_url)?;
    let command: &[&str] = &["migrate"];
    // Two databases share the roles of one cluster, which does not have them yet.
    let (a, b, c, d, e, f, g, h) = tokio::join!(
        program.json(command),
        other.json(command),
        program.json(command),
        other.json(command),
        program.json(command),
        other.json(command),
        program.json(command),
        other.json(command),
    );
    let results = [a?, b?, c?, d?, e?, f?, g?, h?];
    let installed = results
        .iter()
        .filter(|result| result["result"] == "installed")
        .count();
    assert_eq!(installed, 2, "{results:?}");
    let third_url = postgres.create_database(&unique("third")).await?;
    let third = Program::on(&third_url)?;
    let (a, b, c, d, e, f, g, h) = tokio::join!(
        third.json(command),
        third.json(command),
        third.json(command),
        third.json(command),
        third.json(command),
        third.json(command),
        third.json(command),
        third.json(command),
    );
    let results = [a?, b?, c?, d?, e?, f?, g?, h?];
    let installed = results
        .iter()
        .filter(|result| result["result"] == "installed")
        .count();
    assert_eq!(installed, 1, "{results:?}");
    let first = describe(&url).await?;
    assert_eq!(first, describe(&other_url).await?);
    assert_eq!(first, describe(&third_url).await?);
    Ok(())
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_every_command() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    program.done(&["migrate"]).await?;
    let newer = "insert into pillarbox.schema_version (version) values (999)";
    connect(&url).await?.batch_execute(newer).await?;
    for command in [
        vec!["migrate"],
        vec!["status"],
        vec!["settings"],
        vec!["uninstall", "--yes"],
    ] {
        let text = program.refusal(3, &command).await?;
        assert!(text.contains("has version 999"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn an_older_schema_is_refused_by_every_command_until_it_is_upgraded() -> Result<()> {
    let (postgres, program, url) = database(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    schema::migrate_to(&mut connect(&url).await?, 1).await?;
    for command in [
        ["relay"].as_slice(),
        &["relay", "--once"],
        &["status"],
        &["settings"],
        &["sink", "create"],
        &["sink", "check"],
        &["sink", "retire", "clickhouse", "--yes"],
        &["verify"],
        &["dead-letters", "list"],
        &["pause"],
        &["resume"],
        &["grant", "postgres", "--as", "relay"],
        &["uninstall", "--yes"],
    ] {
        let text = program.refusal(3, command).await?;
        assert!(
            text.contains("has version 1, but this program needs version 4")
                && text.contains("run: pillarbox migrate"),
            "{command:?}: {text}"
        );
    }
    // What publishers do is the same in both versions.
    program.done(&["publish", "early", "{}"]).await?;
    let upgraded = program.json(&["migrate"]).await?;
    assert_eq!(upgraded["result"], "upgraded", "{upgraded}");
    let other = postgres.create_database(&unique("other")).await?;
    let mut client = connect(&other).await?;
    schema::migrate_to(&mut client, 1).await?;
    let script = program.done(&["migrate", "--print", "--from", "1"]).await?;
    client.batch_execute(&script).await?;
    assert_eq!(describe(&url).await?, describe(&other).await?);
    program.done(&["sink", "create"]).await?;
    assert_eq!(program.json(&["relay", "--once"]).await?["rows"], 1);
    Ok(())
}

/// Somebody keeps a table of the older version: no upgrade, and it is said who that is.
#[tokio::test]
async fn an_upgrade_that_is_kept_waiting_names_who_keeps_it() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V18] {
        let (_postgres, program, url) = database(version).await?;
        schema::migrate_to(&mut connect(&url).await?, 1).await?;
        let analyst = connect(&url).await?;
        let pid: i32 = analyst
            .query_one("select pg_backend_pid()", &[])
            .await?
            .get(0);
        analyst
            .batch_execute(
                "set application_name = 'monthly report';
                 begin;
                 select count(*), 'not for others' from pillarbox.batch",
            )
            .await?;
        let text = program.refusal(3, &["migrate"]).await?;
        for part in [
            format!("pid {pid}"),
            "monthly report".to_owned(),
            "idle in transaction".to_owned(),
            "pillarbox.batch".to_owned(),
            format!("select pg_terminate_backend({pid})"),
            "pillarbox migrate".to_owned(),
        ] {
            assert!(text.contains(&part), "no {part}: {text}");
        }
        assert!(!text.contains("not for others"), "{text}");
        // What an administrator runs does not make publishers queue behind it for longer.
        let script = program.done(&["migrate", "--print", "--from", "1"]).await?;
        let administrator = connect(&url).await?;
        administrator
            .batch_execute("set statement_timeout = '20s'")
            .await?;
        let refused = administrator.batch_execute(&script).await;
        let code = refused.as_ref().err().and_then(|error| error.code());
        assert_eq!(code, Some(&SqlState::LOCK_NOT_AVAILABLE), "{refused:?}");
        analyst.batch_execute("rollback").await?;
        administrator.batch_execute("rollback").await?;
        // A prepared transaction has no session to end.
        let prepare =
            "begin; lock table pillarbox.delivery in row share mode; prepare transaction 'monthly'";
        analyst.batch_execute(prepare).await?;
        let text = program.refusal(3, &["migrate"]).await?;
        let ends = "rollback prepared 'monthly'";
        assert!(
            text.contains("pillarbox.delivery") && text.contains(ends),
            "{text}"
        );
        analyst.batch_execute(ends).await?;
        assert_eq!(program.json(&["migrate"]).await?["result"], "upgraded");
    }
    Ok(())
}

#[tokio::test]
async fn migrate_without_createrole_says_what_an_administrator_runs() -> Result<()> {
    let postgres = Postgres::start(PgVersion::V15).await?;
    let (name, user) = (unique("poor"), unique("poor_user"));
    let url = postgres.create_database(&name).await?;
    let sql = format!("create role {user} login; grant create on database {name} to {user}");
    postgres.execute(&sql).await?;
    let program = Program::on(&postgres.url_for(&name, &user, None)?)?;
    let text = program.refusal(3, &["migrate"]).await?;
    assert!(
        text.contains("CREATEROLE") && text.contains("pillarbox migrate --print"),
        "{text}"
    );
    let script = program.done(&["migrate", "--print"]).await?;
    connect(&url).await?.batch_execute(&script).await?;
    let text = program.refusal(3, &["migrate"]).await?;
    assert!(
        text.contains("permission denied for schema pillarbox"),
        "{text}"
    );
    Program::on(&url)?
        .done(&["grant", &user, "--as", "reader"])
        .await?;
    assert_eq!(program.json(&["migrate"]).await?["result"], "up-to-date");
    Ok(())
}

#[tokio::test]
async fn uninstall_keeps_what_nobody_has_received() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    program.done(&["migrate"]).await?;
    program.done(&["publish", "user_created", "{}"]).await?;
    let text = program.refusal(2, &["uninstall"]).await?;
    assert!(text.contains("1 event") && text.contains("--yes"), "{text}");
    let text = program.refusal(3, &["uninstall", "--yes"]).await?;
    assert!(
        text.contains("holds 1 event and no sink is registered"),
        "{text}"
    );
    let client = connect(&url).await?;
    let register = "select pillarbox.register_sink('audit', 'clickhouse:d.t', 1)";
    client.batch_execute(register).await?;
    let text = program.refusal(3, &["uninstall", "--yes"]).await?;
    assert!(text.contains("1 event of sink audit"), "{text}");
    let text = program.refusal(2, &["sink", "retire", "audit"]).await?;
    assert!(
        text.contains("1 event not delivered yet, none of which would reach it"),
        "{text}"
    );
    program.done(&["sink", "retire", "audit", "--yes"]).await?;
    let text = program.refusal(3, &["uninstall", "--yes"]).await?;
    assert!(text.contains("no sink is registered"), "{text}");

    client
        .batch_execute("begin; select pillarbox.publish('x', '{}')")
        .await?;
    let text = program
        .refusal(3, &["uninstall", "--yes", "--discard-events"])
        .await?;
    assert!(text.contains("open transaction"), "{text}");
    client.batch_execute("rollback").await?;
    let out = program
        .done(&["uninstall", "--yes", "--discard-events"])
        .await?;
    assert!(out.contains("the roles stay"), "{out}");
    let text = program.refusal(3, &["status"]).await?;
    assert!(text.contains("pillarbox migrate"), "{text}");
    program.done(&["migrate"]).await?;
    Ok(())
}
