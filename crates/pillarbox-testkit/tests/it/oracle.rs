//! The oracle reads what both ClickHouse flavours hold, down to the byte.

use anyhow::Result;
use pillarbox_testkit::oracle::{Content, Oracle, Precision, Published, read_clickhouse};
use pillarbox_testkit::servers::{ClickHouse, Flavour};
use uuid::Uuid;

const TIME_US: i64 = 1_795_168_800_123_456;

fn published(n: u128, event_context: &str) -> Published {
    let content = Content {
        event_type: "a",
        environment: "b",
        event_context: event_context.as_bytes(),
        metadata_version: u64::MAX,
    };
    Published::new(Uuid::from_u128(n), &content, TIME_US)
}

async fn insert(server: &ClickHouse, n: u128, context_expression: &str) -> Result<()> {
    let time = match server.flavour() {
        Flavour::V18 => "toDateTime(1795168800)",
        Flavour::V26 => "fromUnixTimestamp64Micro(toInt64(1795168800123456))",
    };
    let id = Uuid::from_u128(n);
    let sql = format!(
        "insert into events (event_id, event_type, event_date_time, environment, event_context, \
         metadata_version) select toUUID('{id}'), 'a', {time}, 'b', {context_expression}, \
         toUInt64(18446744073709551615)"
    );
    server.query(&sql).await?;
    Ok(())
}

#[tokio::test]
async fn the_oracle_reads_every_row_of_both_flavours() -> Result<()> {
    for flavour in Flavour::ALL {
        let server = ClickHouse::start(flavour).await?;
        let (time, word, precision) = match flavour {
            Flavour::V18 => ("DateTime('UTC')", "String", Precision::Seconds),
            Flavour::V26 => (
                "DateTime64(6, 'UTC')",
                "LowCardinality(String)",
                Precision::Micros,
            ),
        };
        let create = format!(
            "create table events (event_id UUID, event_type {word}, event_date_time {time}, \
             environment {word}, event_context String, metadata_version UInt64) \
             engine = MergeTree order by event_type"
        );
        server.query(&create).await?;
        let oracle = Oracle::new();
        assert!(
            read_clickhouse(&server, "events", precision)
                .await?
                .is_empty()
        );

        let odd = "{\"a\":\t\"\\u0000\\n'\u{1f4ee}\"}\n";
        oracle.committed(published(1, odd));
        insert(
            &server,
            1,
            "unhex('7B2261223A09225C75303030305C6E27F09F93AE227D0A')",
        )
        .await?;
        // Above one page in sum.
        let long = "x".repeat(1 << 20);
        for n in 2..72 {
            oracle.committed(published(n, &long));
        }
        let kilobyte = "x".repeat(1024);
        let long_expression =
            format!("arrayStringConcat(arrayMap(i -> '{kilobyte}', range(1024)))");
        for n in 2..72 {
            insert(&server, n, &long_expression).await?;
        }
        let found = read_clickhouse(&server, "events", precision).await?;
        let verdict = oracle.verdict(&found, &[]);
        assert!(
            verdict.holds(),
            "{flavour:?}: {verdict}\n{}",
            verdict.explain()
        );
        assert_eq!(verdict.delivered, 71);

        insert(&server, 1, "'{}'").await?;
        insert(&server, 99, "'{}'").await?;
        let found = read_clickhouse(&server, "events", precision).await?;
        let verdict = oracle.verdict(&found, &[]);
        let counts = [&verdict.duplicated, &verdict.phantom, &verdict.altered].map(|f| f.count);
        assert_eq!(counts, [1, 1, 1], "{flavour:?}: {verdict}");
    }
    Ok(())
}
