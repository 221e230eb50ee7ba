//! `verify` as the oracle's other half: what the ledger says is in the sink, against what is (INV-13).

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use pillarbox_relay::sink::clickhouse::{ClickHouse, ClickHousePlan};
use pillarbox_relay::sink::{Sink as _, Trouble};
use pillarbox_relay::source::postgres::outbox_columns;
use pillarbox_relay::verify::{self, Proof, Scope};
use tokio_postgres::Client;

/// What the preflight of a relay would find.
pub async fn plan(client: &Client, sink: &ClickHouse) -> Result<ClickHousePlan> {
    let planned = sink
        .prepare(&outbox_columns(client, &BTreeMap::new()).await?)
        .await;
    planned.map_err(refused)
}

/// Compares every batch with an outcome of the sink `name` with what its table holds.
///
/// # Errors
/// When one of the two cannot be asked, or a batch with an outcome was left out.
pub async fn prove(client: &Client, sink: &ClickHouse, name: &str) -> Result<Proof> {
    const NUMBER: &str = "select s.sink from pillarbox.sink s where s.name = $1";
    let plan = plan(client, sink).await?;
    let scope = Scope {
        sink: client.query_one(NUMBER, &[&name]).await?.get(0),
        since: None,
        batch: None,
    };
    let total = verify::total(client, &scope).await?;
    let proof = verify::prove(client, sink, &plan, &scope, |_| ()).await?;
    ensure!(proof.batches == total, "{} of {total}", proof.batches);
    Ok(proof)
}

fn refused(trouble: Trouble) -> anyhow::Error {
    anyhow::Error::new(trouble).context("the preflight of the sink")
}
