//! `verify` as the oracle's other half: what the ledger says is in the sink, against what is (INV-13).

use anyhow::{Result, ensure};
use pillarbox_relay::sink::clickhouse::{ClickHouse, ClickHousePlan};
use pillarbox_relay::sink::{OutboxColumn, Sink as _, Trouble};
use pillarbox_relay::verify::{self, Proof, Scope};
use tokio_postgres::Client;

/// The columns of the outbox, as a relay reads them.
pub async fn outbox_columns(client: &Client) -> Result<Vec<OutboxColumn>> {
    const COLUMNS: &str =
        include_str!("../../pillarbox-relay/src/source/postgres/sql/outbox_columns.sql");
    let rows = client.query(COLUMNS, &[]).await?;
    let column = |row: &tokio_postgres::Row| OutboxColumn {
        name: row.get(0),
        type_oid: row.get(1),
        type_name: row.get(2),
        not_null: row.get(3),
    };
    Ok(rows.iter().map(column).collect())
}

/// What the preflight of a relay would find.
pub async fn plan(client: &Client, sink: &ClickHouse) -> Result<ClickHousePlan> {
    let planned = sink.prepare(&outbox_columns(client).await?).await;
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
