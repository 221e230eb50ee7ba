//! How the server runs our statements: by index, in the order of the index, with and without
//! statistics, on an empty and on a filled outbox (INV-6).

use anyhow::{Context, Result};
use pillarbox_relay::postgres;
use pillarbox_relay::source::Session;
use serde_json::Value;
use tokio_postgres::Client;

use crate::outbox::{Outbox, SINK, VERSIONS, publish};

const PROBE: &str = include_str!("../../../pillarbox-relay/src/source/postgres/sql/probe.sql");
const NEEDED: &str =
    include_str!("../../../pillarbox-relay/src/source/postgres/sql/leaf_needed.sql");
const LEAVES: &str = include_str!("../../../pillarbox-relay/src/source/postgres/sql/leaves.sql");

/// Each node of the plan that reads an event, and each that sorts or hashes.
fn offences(plan: &Value, found: &mut Vec<String>) {
    let kind = plan["Node Type"].as_str().unwrap_or_default();
    let relation = plan["Relation Name"].as_str().unwrap_or_default();
    let on_event = relation.starts_with("event");
    let bad_scan = on_event && (kind == "Seq Scan" || kind.starts_with("Bitmap"));
    let sorts = kind.contains("Sort") && reads_event(plan);
    let hashes = (kind.contains("Hash") || kind == "Merge Join") && reads_event(plan);
    if bad_scan || sorts || hashes {
        found.push(format!("{kind} {relation}"));
    }
    for child in plan["Plans"].as_array().into_iter().flatten() {
        offences(child, found);
    }
}

fn reads_event(plan: &Value) -> bool {
    let relation = plan["Relation Name"].as_str().unwrap_or_default();
    relation.starts_with("event")
        || plan["Plans"]
            .as_array()
            .into_iter()
            .flatten()
            .any(reads_event)
}

async fn check(client: &Client, name: &str, explained: &str) -> Result<()> {
    let row = client.query_one(explained, &[]).await;
    let plan: Value = row.with_context(|| name.to_owned())?.get(0);
    let mut found = Vec::new();
    offences(&plan[0]["Plan"], &mut found);
    assert!(found.is_empty(), "{name}: {found:?} in {plan:#}");
    Ok(())
}

/// Every statement of the data path, planned on a session as ours are.
async fn check_all(outbox: &Outbox, when: &str) -> Result<()> {
    let config = postgres::parse_url(outbox.server.url())?;
    let session = postgres::connect(&config, "plans").await?;
    let client = session.client();
    client.batch_execute("deallocate all").await?;
    let prepare = |name: &str, types: &str, sql: &str| format!("prepare {name} ({types}) as {sql}");
    let needed = NEEDED.replace("{slot}", "1");
    for (name, types, sql, given) in [
        ("probe", "text", PROBE, "'700:9000:800,900'"),
        (
            "leaf_needed",
            "integer[], bigint[]",
            needed.as_str(),
            "'{1}', '{0}'",
        ),
    ] {
        client.batch_execute(&prepare(name, types, sql)).await?;
        let explain = format!("explain (format json) execute {name} ({given})");
        check(client, &format!("{name}, {when}"), &explain).await?;
    }
    let explain = format!("explain (format json) {LEAVES}");
    check(client, &format!("leaves, {when}"), &explain).await?;
    for (name, sql) in [
        (
            "undone",
            "select * from pillarbox.undone('700:9000:800,900', '750:9500:900', '800', 5)",
        ),
        (
            "undone of an open batch",
            "select * from pillarbox.undone('700:9000:800', '700:9000:800', null, null) u
             where u.slot = 2",
        ),
        (
            "singles",
            "select r.* from unnest('{800,900}'::xid8[], '{5,6}'::bigint[]) as s (tx, id)
             cross join lateral (
                 select e.tx, e.id, e.event_context from pillarbox.event e
                 where e.tx = s.tx and e.id > s.id order by e.tx, e.id limit 200001
             ) r limit 200001",
        ),
        (
            "range",
            "select e.tx, e.id, e.event_context from pillarbox.event e
             where e.tx >= '700'::xid8 and e.tx < '999999'::xid8
                 and pg_visible_in_snapshot(e.tx, '700:999999:'::pg_snapshot)
             order by e.tx, e.id limit 200001",
        ),
        (
            "range of a sealed batch",
            "select e.tx, e.id, e.event_context from pillarbox.event e
             where e.tx >= '700'::xid8 and e.tx < '999999'::xid8
                 and pg_visible_in_snapshot(e.tx, '700:999999:'::pg_snapshot)
                 and (e.tx, e.id) <= ('900'::xid8, 7)
             order by e.tx, e.id limit 200001",
        ),
    ] {
        let explain = format!("explain (format json) {sql}");
        check(client, &format!("{name}, {when}"), &explain).await?;
    }
    Ok(())
}

/// The check finds what it looks for.
#[tokio::test]
async fn a_sort_and_a_sequential_scan_are_found() -> Result<()> {
    let outbox = Outbox::start(VERSIONS[0]).await?;
    let sorted = "explain (format json)
                  select e.tx from pillarbox.event e join pillarbox.event f using (event_id)
                  order by e.published_at";
    let plan: Value = outbox.value(sorted).await?;
    let mut found = Vec::new();
    offences(&plan[0]["Plan"], &mut found);
    let found = found.join(", ");
    assert!(
        found.contains("Sort") && found.contains("Seq Scan event_"),
        "{found}"
    );
    Ok(())
}

/// No Sort, no Seq Scan, no Hash Join, whatever the planner knows.
#[tokio::test]
async fn events_are_read_by_index_and_never_sorted() -> Result<()> {
    for version in VERSIONS {
        let outbox = Outbox::start(version).await?;
        check_all(&outbox, "empty").await?;
        for slot in 0..4 {
            outbox.turn_to(slot).await?;
            for _ in 0..20 {
                publish(&outbox.admin, 500).await?;
            }
        }
        let mut drain = outbox.drain(SINK).await?;
        drain.seal(3_000).await?.context("a batch")?;
        drain.session.tend().await?;
        check_all(&outbox, "filled, without statistics").await?;
        outbox.admin.batch_execute("analyze").await?;
        check_all(&outbox, "filled, with statistics").await?;
        let truncate = "truncate pillarbox.event; analyze pillarbox.event";
        outbox.admin.batch_execute(truncate).await?;
        check_all(&outbox, "emptied, with statistics").await?;
    }
    Ok(())
}
