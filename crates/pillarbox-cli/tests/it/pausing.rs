//! `pause` and `resume`: nothing is delivered in between, nothing is lost.

use anyhow::{Context as _, Result};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, eventually};
use rustix::process::Signal;
use tokio_postgres::Client;

use crate::program::{DEADLINE, connect, database, finish, signal};

/// Waits until the relay has looked at its switches twice more: the second look began after this call.
async fn two_beats(client: &Client) -> Result<()> {
    let beaten = "select max(a.query_start)::text from pg_locks l
                  join pg_stat_activity a using (pid)
                  where l.locktype = 'advisory' and l.granted and l.objid <> 0
                      and a.application_name like 'pillarbox/%' and a.query like '%s.paused%'";
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let at = eventually("the relay to beat", DEADLINE, || async {
            let at: Option<String> = client.query_one(beaten, &[]).await?.get(0);
            Ok(at.filter(|at| seen.last() != Some(at)))
        })
        .await?;
        seen.push(at);
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_delivered_while_paused_and_everything_after() -> Result<()> {
    for flavour in Flavour::ALL {
        let (_postgres, program, url) = database(PgVersion::V15).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program
            .with_clickhouse(&clickhouse)?
            .with("PILLARBOX_RELAY__MAX_AGE", "50ms");
        let count = async || -> Result<u64> {
            let sql = format!("select count() from {}", program.table);
            Ok(clickhouse.query(&sql).await?.trim().parse()?)
        };
        let arrive = async |events: u64| {
            eventually("the events to arrive", DEADLINE, || async {
                Ok((count().await? == events).then_some(()))
            })
            .await
        };
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        let relay = program.start(&["relay"])?;
        program.done(&["publish", "before", "{}"]).await?;
        arrive(1).await?;

        let paused = program.json(&["pause"]).await?;
        let wanted = serde_json::json!({"sink": "clickhouse", "paused": true, "changed": true});
        assert_eq!(paused, wanted);
        let outbox = connect(&url).await?;
        two_beats(&outbox).await?;
        for _ in 0..3 {
            program.done(&["publish", "meanwhile", "{}"]).await?;
            two_beats(&outbox).await?;
        }
        assert_eq!(count().await?, 1, "delivered while paused");
        let status = program.json(&["status"]).await?;
        let sink = &status["sinks"][0];
        assert_eq!(
            (&sink["state"], &sink["paused"]),
            (&"paused".into(), &true.into())
        );
        assert_eq!(sink["waiting_events"], 3, "{status}");
        assert_eq!(
            sink["open_batches"], 0,
            "nothing is sealed either: {status}"
        );
        let shown = program.run(&["status"]).await?;
        assert!(shown.out.contains("paused"), "{shown:?}");
        let step = "next: go on with: pillarbox resume clickhouse";
        assert!(shown.err.contains(step), "{shown:?}");

        let resumed = program.json(&["resume", "clickhouse"]).await?;
        assert_eq!(
            (&resumed["paused"], &resumed["changed"]),
            (&false.into(), &true.into())
        );
        arrive(4).await?;
        signal(&relay, Signal::TERM)?;
        assert_eq!(finish(relay).await?.code, 0);
    }
    Ok(())
}

#[tokio::test]
async fn pausing_twice_is_pausing_once_and_a_drain_says_that_it_is_held_back() -> Result<()> {
    let (_postgres, program, url) = database(PgVersion::V15).await?;
    let text = program.refusal(3, &["pause"]).await?;
    assert!(text.contains("pillarbox migrate"), "{text}");
    program.done(&["migrate"]).await?;
    let text = program.refusal(3, &["pause"]).await?;
    assert!(text.contains("pillarbox sink create"), "{text}");
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let program = program.with_clickhouse(&clickhouse)?;
    program.done(&["sink", "create"]).await?;
    let text = program.refusal(3, &["resume", "audit"]).await?;
    assert!(text.contains("no sink named audit is registered"), "{text}");

    let first = program.run(&["pause"]).await?;
    assert!(
        first.out.starts_with("paused the sink clickhouse"),
        "{first:?}"
    );
    assert!(
        first
            .err
            .contains("next: go on with: pillarbox resume clickhouse")
    );
    assert!(program.done(&["pause"]).await?.contains("paused already"));
    assert_eq!(program.json(&["pause"]).await?["changed"], false);
    program.done(&["publish", "kept", "{}"]).await?;
    let drained = program.run(&["relay", "--once"]).await?;
    assert_eq!(drained.code, 0, "{drained:?}");
    assert!(drained.out.contains("delivered 0 events"), "{drained:?}");
    let step = "the sink clickhouse is paused; to deliver to it: pillarbox resume clickhouse";
    assert!(drained.err.contains(step), "{drained:?}");

    program.done(&["resume"]).await?;
    assert!(program.done(&["resume"]).await?.contains("is not paused"));
    assert!(
        program
            .done(&["relay", "--once"])
            .await?
            .contains("delivered 1 event")
    );

    let outbox = connect(&url).await?;
    let second = "select pillarbox.register_sink('audit', 'test', 5)";
    outbox
        .query_one(second, &[])
        .await
        .context("a second sink")?;
    let text = program.refusal(2, &["pause"]).await?;
    assert!(text.contains("say which, clickhouse or audit"), "{text}");
    program.done(&["pause", "audit"]).await?;
    program.done(&["sink", "retire", "audit", "--yes"]).await?;
    let text = program.refusal(3, &["resume", "audit"]).await?;
    assert!(text.contains("was retired"), "{text}");
    Ok(())
}
