//! Whether a table holds what the outbox holds: rows, and a sum over the MD5 of each row's five columns,
//! which PostgreSQL and ClickHouse 18.16 compute to the same value.

use anyhow::{Context as _, Result};
use tokio_postgres::Client;

use crate::stage::Stage;

/// Rows and their sum modulo 2⁶⁴.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) rows: u64,
    sum: u64,
}

/// Of a table or subquery of PostgreSQL. Times must be whole seconds.
pub(crate) async fn of_postgres(client: &Client, from: &str) -> Result<Content> {
    let sql = format!(
        "select count(*)::bigint,
             mod(coalesce(sum(('x' || left(md5(line), 16))::bit(64)::bigint), 0), 2::numeric ^ 64)::text
         from (
             select md5(event_context::text) || extract(epoch from event_date_time)::bigint || ':'
                 || metadata_version || ':' || octet_length(event_type) || ':' || event_type || environment
                 as line
             from {from} source
         ) lines"
    );
    let row = client.query_one(&sql, &[]).await?;
    let sum: String = row.get(1);
    let sum: i128 = sum.split('.').next().unwrap_or_default().parse()?;
    Ok(Content {
        rows: row.get::<_, i64>(0).cast_unsigned(),
        // Two's complement: the signed sum and the unsigned one agree in these 64 bits.
        sum: sum as u64,
    })
}

/// Of a table of ClickHouse.
pub(crate) async fn of_clickhouse(stage: &Stage, table: &str) -> Result<Content> {
    let sql = format!(
        "select count(), sum(reinterpretAsUInt64(reverse(substring(toString(MD5(concat(
             lower(hex(MD5(event_context))), toString(toUInt32(event_date_time)), ':',
             toString(metadata_version), ':', toString(length(event_type)), ':', event_type, environment
         ))), 1, 8))))
         from {table}"
    );
    let answer = stage.statement(&sql, &[], "").await?;
    let (rows, sum) = answer.trim().split_once('\t').context("two columns")?;
    Ok(Content {
        rows: rows.parse()?,
        sum: sum.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pillarbox_testkit::servers::{PgVersion, Postgres};

    const COLUMNS: &str =
        "event_type, event_date_time, environment, event_context, metadata_version";

    #[tokio::test]
    async fn both_servers_compute_the_same_and_see_a_difference() -> Result<()> {
        let postgres = Postgres::start(PgVersion::V15).await?;
        let stage = Stage::of(postgres).await?;
        let client = stage.postgres.connect().await?;
        let rows = r#"('a', timestamptz '2026-11-20 12:00:00Z', 'production', json '{"t": "a\tb\\ é"}', 1),
                      ('', '1970-01-01 00:00:00Z', '', 'null', 4000000000)"#;
        client
            .batch_execute(&format!(
                "create table source as select * from (values {rows}) of_it ({COLUMNS})"
            ))
            .await?;
        stage
            .statement(
                "create table target (event_type String, event_date_time DateTime('UTC'),
                     environment String, event_context String, metadata_version UInt64) engine = Log",
                &[],
                "",
            )
            .await?;
        let lines = "a\t2026-11-20 12:00:00\tproduction\t{\"t\": \"a\\\\tb\\\\\\\\ é\"}\t1\n\
                     \t1970-01-01 00:00:00\t\tnull\t4000000000\n";
        stage
            .statement("insert into target format TSV", &[], lines)
            .await?;
        let sent = of_postgres(&client, "source").await?;
        assert_eq!(sent.rows, 2);
        assert_eq!(of_clickhouse(&stage, "target").await?, sent);
        for change in [
            "event_type = event_type || 'b'",
            "event_date_time = event_date_time + interval '1 s'",
            "environment = environment || 'n'",
            "event_context = '{}'",
            "metadata_version = metadata_version + 1",
        ] {
            let update = format!("begin; update source set {change} where event_type = 'a'");
            client.batch_execute(&update).await?;
            assert_ne!(of_postgres(&client, "source").await?, sent, "{change}");
            client.batch_execute("rollback").await?;
        }
        Ok(())
    }
}
