//! `columns` on real servers: the plan, the statements, and a column on both sides.

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion};
use serde_json::Value;

use crate::program::{Program, connect, database};

const FILE: &str = r#"
[sinks.clickhouse]
redact = ["user.email", ["a.b"]]
columns.tenant_id = "event_context ->> 'tenant_id'"
columns.name = { expression = "(select 'x'::text)", volatile = true, missing = "wait" }
"#;

fn plan<'a>(shown: &'a Value, name: &str) -> Result<&'a Value> {
    let plans = shown["columns"].as_array().context("columns")?;
    let plan = plans.iter().find(|plan| plan["name"] == name);
    plan.with_context(|| format!("{name} in {shown}"))
}

/// The table of the program's sink, quoted.
async fn table(program: &Program) -> Result<String> {
    let shown = program.json(&["columns"]).await?;
    let table = shown["table"].as_str().context("table")?;
    Ok(format!("`{}`", table.replace('.', "`.`")))
}

async fn columns(version: PgVersion, flavour: Flavour) -> Result<()> {
    let clickhouse = ClickHouse::start(flavour).await?;
    let (_postgres, program, url) = database(version).await?;
    let program = program.with_clickhouse(&clickhouse)?.file(FILE)?;
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create"]).await?;
    let client = connect(&url).await?;
    client
        .batch_execute(
            "alter table pillarbox.event add column amount numeric(12,2), add column level text",
        )
        .await?;
    let table = table(&program).await?;
    for add in ["level UInt8", "tenant_id Nullable(String)", "shard UInt32"] {
        clickhouse
            .query(&format!("alter table {table} add column {add}"))
            .await?;
    }

    let shown = program.json(&["columns"]).await?;
    let amount = plan(&shown, "amount")?;
    assert_eq!(
        amount["sink_ddl"],
        format!("ALTER TABLE {table} ADD COLUMN `amount` Nullable(Decimal(12, 2))")
    );
    assert_eq!(
        plan(&shown, "level")?["source"],
        "refused: the types do not fit"
    );
    let tenant = plan(&shown, "tenant_id")?;
    assert_eq!(tenant["source"], "computed: event_context ->> 'tenant_id'");
    assert_eq!(tenant["sink_ddl"], Value::Null);
    let name = plan(&shown, "name")?;
    assert!(
        name["source"]
            .as_str()
            .is_some_and(|text| text.starts_with("left out"))
    );
    let shard = &plan(&shown, "shard")?["outbox_ddl"];
    assert_eq!(
        *shard,
        "alter table pillarbox.event add column \"shard\" bigint not null default 0"
    );
    assert_eq!(
        plan(&shown, "batch")?["source"],
        "the relay: the number of the batch"
    );
    assert_eq!(shown["redacted"], serde_json::json!(["user.email", "a.b"]));

    // For people: what it prints can be pasted, and then there is nothing left to print.
    let text = program.done(&["columns"]).await?;
    for side in ["clickhouse", "postgresql"] {
        let head = format!("-- in {side}, to bring both sides together:\n");
        let (_, rest) = text.split_once(&head).with_context(|| text.clone())?;
        let ddl = rest.lines().take_while(|line| line.ends_with(';'));
        for statement in ddl.map(|line| line.trim_end_matches(';')) {
            match side {
                "clickhouse" => {
                    clickhouse.query(statement).await?;
                }
                _ => client.batch_execute(statement).await?,
            }
        }
    }
    let text = program.done(&["columns"]).await?;
    ensure!(!text.contains("ALTER TABLE"), "{text}");
    program.done(&["sink", "check"]).await?;
    Ok(())
}

#[tokio::test]
async fn the_plan_and_what_brings_both_sides_together_on_clickhouse_18() -> Result<()> {
    columns(PgVersion::V15, Flavour::V18).await
}

#[tokio::test]
async fn the_plan_and_what_brings_both_sides_together_on_clickhouse_26() -> Result<()> {
    columns(PgVersion::V18, Flavour::V26).await
}

#[tokio::test]
async fn a_column_is_added_to_both_sides_and_filled() -> Result<()> {
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let (_postgres, program, url) = database(PgVersion::V18).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create"]).await?;
    let add = [
        "columns",
        "add",
        "amount",
        "numeric(12, 2)",
        "--default",
        "-1",
        "--not-null",
    ];
    let printed = program.done(&[&add[..], &["--print"]].concat()).await?;
    ensure!(
        printed.contains("ADD COLUMN `amount` Decimal(12, 2);"),
        "{printed}"
    );
    ensure!(
        printed.contains("default E'-1'::numeric(12, 2) not null;"),
        "{printed}"
    );
    program.done(&add).await?;
    let refused = program.refusal(3, &add).await?;
    ensure!(refused.contains("already"), "{refused}");
    let wrong = [
        "columns",
        "add",
        "x",
        "text",
        "--sink-type",
        "Map(String, String)",
    ];
    let refused = program.refusal(3, &wrong).await?;
    ensure!(refused.contains("cannot write the type"), "{refused}");

    let client = connect(&url).await?;
    client
        .batch_execute(
            "select pillarbox.publish('a', '{}');
             insert into pillarbox.event (event_type, event_context, amount) values ('b', '{}', 12.5)",
        )
        .await?;
    program.done(&["relay", "--once"]).await?;
    let table = table(&program).await?;
    let amounts = format!("select toString(amount) from {table} order by event_type");
    assert_eq!(clickhouse.query(&amounts).await?, "-1\n12.5\n");
    Ok(())
}

#[tokio::test]
async fn a_context_can_be_the_json_of_clickhouse() -> Result<()> {
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let (_postgres, program, _url) = database(PgVersion::V18).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    program.done(&["migrate"]).await?;
    program.done(&["sink", "create", "--json-context"]).await?;
    program
        .done(&["publish", "a", r#"{"user": {"id": 7}}"#])
        .await?;
    // A key that comes twice is no object to the server.
    program
        .done(&["publish", "b", r#"{"n": 1, "n": 2}"#])
        .await?;
    program.done(&["relay", "--once"]).await?;
    let table = table(&program).await?;
    let ids = format!("select event_type, event_context.user.id from {table}");
    assert_eq!(clickhouse.query(&ids).await?, "a\t7\n");
    let dead = program.json(&["dead-letters", "list"]).await?;
    ensure!(dead.to_string().contains("Duplicate path"), "{dead}");
    program.done(&["verify"]).await?;
    let events = program.done(&["events"]).await?;
    ensure!(events.contains("user"), "{events}");

    let old = ClickHouse::start(Flavour::V18).await?;
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    let program = program.with_clickhouse(&old)?;
    program.done(&["migrate"]).await?;
    let refused = program
        .refusal(3, &["sink", "create", "--json-context"])
        .await?;
    ensure!(refused.contains("no type JSON"), "{refused}");
    Ok(())
}
