//! Values at their edges, from columns of the outbox into columns of the table.

use std::error::Error;

use anyhow::{Result, ensure};
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::Flavour;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type};

use super::*;
use crate::scene::TABLE;

/// A column of the outbox and of the table: PostgreSQL's type, ClickHouse's, how to show it, and
/// three values with what is shown of them.
struct Column {
    from: &'static str,
    into: &'static str,
    shown: &'static str,
    values: [(&'static str, &'static str); 3],
}

const fn column(
    from: &'static str,
    into: &'static str,
    shown: &'static str,
    values: [(&'static str, &'static str); 3],
) -> Column {
    Column {
        from,
        into,
        shown,
        values,
    }
}

/// What both engines know: lowest, highest, and something strange.
const COLUMNS: [Column; 26] = [
    column(
        "smallint",
        "Int8",
        "toString(#)",
        [("-128", "-128"), ("127", "127"), ("0", "0")],
    ),
    column(
        "smallint",
        "UInt8",
        "toString(#)",
        [("0", "0"), ("255", "255"), ("1", "1")],
    ),
    column(
        "smallint",
        "Int16",
        "toString(#)",
        [("-32768", "-32768"), ("32767", "32767"), ("-1", "-1")],
    ),
    column(
        "integer",
        "UInt16",
        "toString(#)",
        [("0", "0"), ("65535", "65535"), ("1", "1")],
    ),
    column(
        "integer",
        "Int32",
        "toString(#)",
        [
            ("-2147483648", "-2147483648"),
            ("2147483647", "2147483647"),
            ("-1", "-1"),
        ],
    ),
    column(
        "bigint",
        "UInt32",
        "toString(#)",
        [("0", "0"), ("4294967295", "4294967295"), ("1", "1")],
    ),
    column(
        "bigint",
        "Int64",
        "toString(#)",
        [
            ("-9223372036854775808", "-9223372036854775808"),
            ("9223372036854775807", "9223372036854775807"),
            ("-1", "-1"),
        ],
    ),
    column(
        "bigint",
        "UInt64",
        "toString(#)",
        [
            ("0", "0"),
            ("9223372036854775807", "9223372036854775807"),
            ("1", "1"),
        ],
    ),
    column(
        "bigint",
        "Nullable(Int64)",
        "toString(#)",
        [
            ("-9223372036854775808", "-9223372036854775808"),
            ("9223372036854775807", "9223372036854775807"),
            ("null", "null"),
        ],
    ),
    column(
        "real",
        "Float32",
        "hex(reinterpretAsString(#))",
        [
            ("'-3.4028235e38'", "FFFF7FFF"),
            ("'3.4028235e38'", "FFFF7F7F"),
            ("'NaN'", "0000C07F"),
        ],
    ),
    column(
        "real",
        "Float64",
        "hex(reinterpretAsString(#))",
        [
            ("'-Infinity'", "000000000000F0FF"),
            ("'Infinity'", "000000000000F07F"),
            ("'1e-45'", "000000000000A036"),
        ],
    ),
    column(
        "double precision",
        "Float64",
        "hex(reinterpretAsString(#))",
        [
            ("'-1.7976931348623157e308'", "FFFFFFFFFFFFEFFF"),
            ("'1.7976931348623157e308'", "FFFFFFFFFFFFEF7F"),
            ("'NaN'", "000000000000F87F"),
        ],
    ),
    column(
        "double precision",
        "Nullable(Float64)",
        "toString(#)",
        [
            ("'-Infinity'", "-inf"),
            ("'Infinity'", "inf"),
            ("null", "null"),
        ],
    ),
    column(
        "boolean",
        "UInt8",
        "toString(#)",
        [("false", "0"), ("true", "1"), ("true", "1")],
    ),
    column(
        "date",
        "Date",
        "toString(toInt32(#))",
        [
            ("'1970-01-01'", "0"),
            ("'2149-06-06'", "65535"),
            ("'1970-01-02'", "1"),
        ],
    ),
    column(
        "date",
        "Nullable(Date)",
        "toString(toInt32(#))",
        [
            ("'1970-01-02'", "1"),
            ("'2105-12-31'", "49672"),
            ("null", "null"),
        ],
    ),
    column(
        "timestamptz",
        "DateTime('UTC')",
        "toString(toUInt32(#))",
        [
            ("'1970-01-01 00:00:00Z'", "0"),
            ("'2106-02-07 06:28:15.999999Z'", "4294967295"),
            ("'1970-01-01 00:00:00.999999Z'", "0"),
        ],
    ),
    column(
        "timestamp",
        "DateTime('UTC')",
        "toString(toUInt32(#))",
        [
            ("'1970-01-01 00:00:00'", "0"),
            ("'2106-02-07 06:28:15'", "4294967295"),
            ("'2000-01-01'", "946684800"),
        ],
    ),
    column(
        "uuid",
        "UUID",
        "toString(#)",
        [
            (
                "'00000000-0000-0000-0000-000000000000'",
                "00000000-0000-0000-0000-000000000000",
            ),
            (
                "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ),
            (
                "'01234567-89ab-cdef-0123-456789abcdef'",
                "01234567-89ab-cdef-0123-456789abcdef",
            ),
        ],
    ),
    column(
        "uuid",
        "Nullable(String)",
        "toString(#)",
        [
            (
                "'01234567-89AB-CDEF-0123-456789ABCDEF'",
                "01234567-89ab-cdef-0123-456789abcdef",
            ),
            (
                "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ),
            ("null", "null"),
        ],
    ),
    column(
        "text",
        "String",
        "hex(#)",
        [
            ("''", ""),
            ("U&'\\+10FFFF'", "F48FBFBF"),
            ("E'\\x01\\n\\t\\\\'", "010A095C"),
        ],
    ),
    column(
        "varchar(3)",
        "Nullable(String)",
        "hex(#)",
        [("''", ""), ("'é'", "C3A9"), ("null", "null")],
    ),
    column(
        "char(3)",
        "String",
        "hex(#)",
        [("''", "202020"), ("'abc'", "616263"), ("'a'", "612020")],
    ),
    // Whatever bytes they are, a String takes them.
    column(
        "bytea",
        "String",
        "hex(#)",
        [
            ("''", ""),
            ("'\\xfffe00c328'", "FFFE00C328"),
            ("'\\x00'", "00"),
        ],
    ),
    column(
        "jsonb",
        "String",
        "#",
        [
            ("'{\"b\":1, \"a\": 2}'", "{\"a\": 2, \"b\": 1}"),
            ("'1e3'", "1000"),
            ("'[]'", "[]"),
        ],
    ),
    column(
        "json",
        "String",
        "hex(#)",
        [
            ("'\"\\u0000\"'", "225C753030303022"),
            ("' {} '", "207B7D20"),
            ("'1e3'", "316533"),
        ],
    ),
];

/// What only the current engine knows.
const NEWER: [Column; 11] = [
    column(
        "boolean",
        "Bool",
        "toString(#)",
        [("false", "false"), ("true", "true"), ("true", "true")],
    ),
    column(
        "boolean",
        "Nullable(Bool)",
        "toString(#)",
        [("false", "false"), ("true", "true"), ("null", "null")],
    ),
    column(
        "date",
        "Date32",
        "toString(#)",
        [
            ("'1900-01-01'", "1900-01-01"),
            ("'2299-12-31'", "2299-12-31"),
            ("'1969-12-31'", "1969-12-31"),
        ],
    ),
    column(
        "timestamptz",
        "DateTime64(0, 'UTC')",
        "toString(#)",
        [
            ("'1900-01-01 00:00:00Z'", "1900-01-01 00:00:00"),
            ("'2299-12-31 23:59:59.999999Z'", "2299-12-31 23:59:59"),
            ("'1969-12-31 23:59:59.999999Z'", "1969-12-31 23:59:59"),
        ],
    ),
    column(
        "timestamptz",
        "DateTime64(3, 'Asia/Tokyo')",
        "toString(toTimezone(#, 'UTC'))",
        [
            ("'1900-01-01 00:00:00Z'", "1900-01-01 00:00:00.000"),
            ("'2299-12-31 14:59:59.999999Z'", "2299-12-31 14:59:59.999"),
            ("'1969-12-31 23:59:59.999999Z'", "1969-12-31 23:59:59.999"),
        ],
    ),
    column(
        "timestamptz",
        "DateTime64(6, 'UTC')",
        "toString(#)",
        [
            ("'1900-01-01 00:00:00Z'", "1900-01-01 00:00:00.000000"),
            (
                "'2299-12-31 23:59:59.999999Z'",
                "2299-12-31 23:59:59.999999",
            ),
            (
                "'1969-12-31 23:59:59.999999Z'",
                "1969-12-31 23:59:59.999999",
            ),
        ],
    ),
    column(
        "timestamptz",
        "DateTime64(9, 'UTC')",
        "toString(#)",
        [
            ("'1900-01-01 00:00:00Z'", "1900-01-01 00:00:00.000000000"),
            (
                "'2262-04-11 23:47:16.854775Z'",
                "2262-04-11 23:47:16.854775000",
            ),
            (
                "'1969-12-31 23:59:59.999999Z'",
                "1969-12-31 23:59:59.999999000",
            ),
        ],
    ),
    column(
        "timestamp",
        "Nullable(DateTime64(6, 'UTC'))",
        "toString(#)",
        [
            ("'1900-01-01'", "1900-01-01 00:00:00.000000"),
            ("'2299-12-31 23:59:59.999999'", "2299-12-31 23:59:59.999999"),
            ("null", "null"),
        ],
    ),
    column(
        "date",
        "DateTime64(6, 'UTC')",
        "toString(#)",
        [
            ("'1900-01-01'", "1900-01-01 00:00:00.000000"),
            ("'2299-12-31'", "2299-12-31 00:00:00.000000"),
            ("'1970-01-01'", "1970-01-01 00:00:00.000000"),
        ],
    ),
    column(
        "text",
        "LowCardinality(Nullable(String))",
        "hex(#)",
        [("''", ""), ("'é'", "C3A9"), ("null", "null")],
    ),
    column(
        "text",
        "LowCardinality(String)",
        "hex(#)",
        [("''", ""), ("repeat('é', 2)", "C3A9C3A9"), ("'x'", "78")],
    ),
];

async fn every_type(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let newer: &[Column] = match flavour {
        Flavour::V18 => &[],
        Flavour::V26 => &NEWER,
    };
    let columns: Vec<(String, &Column)> = COLUMNS
        .iter()
        .chain(newer)
        .enumerate()
        .map(|(nth, column)| (format!("c{nth}"), column))
        .collect();
    for (name, column) in &columns {
        let outbox = format!(
            "alter table pillarbox.event add column {name} {}",
            column.from
        );
        scene.postgres.execute(&outbox).await?;
        let table = format!("alter table {TABLE} add column {name} {}", column.into);
        scene.clickhouse.query(&table).await?;
    }
    let oracle = Oracle::new();
    let client = scene.postgres.connect().await?;
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    for row in 0..3 {
        let values: Vec<&str> = columns.iter().map(|(_, of)| of.values[row].0).collect();
        let event = Event::at(NOON_US, &format!("row {row}"), "{}".to_owned());
        let sql = format!(
            "insert into pillarbox.event (event_id, event_type, event_date_time, event_context, {}) \
             values ($1, $2, $3, '{{}}', {})",
            names.join(", "),
            values.join(", ")
        );
        client
            .execute(&sql, &[&event.event_id, &event.event_type, &event.at])
            .await?;
        oracle.committed(event.published()?);
    }
    scene.holds_when_drained(&oracle).await?;
    for (name, column) in &columns {
        let shown = column.shown.replace('#', name);
        let shown = format!("ifNull({shown}, 'null')");
        let sql = format!("select {shown} from {TABLE} order by event_type format TSVRaw");
        let held = scene.clickhouse.query(&sql).await?;
        let expected: String = column
            .values
            .map(|(_, shown)| format!("{shown}\n"))
            .concat();
        ensure!(
            held == expected,
            "{} into {}: {held:?}, not {expected:?}",
            column.from,
            column.into
        );
    }
    Ok(())
}

#[tokio::test]
async fn inv_12_every_type_at_its_edges_in_clickhouse_18() -> Result<()> {
    every_type(Flavour::V18).await
}

#[tokio::test]
async fn inv_12_every_type_at_its_edges_in_clickhouse_26() -> Result<()> {
    every_type(Flavour::V26).await
}

/// Bytes that claim to be text.
#[derive(Debug)]
struct Raw(&'static [u8]);

impl ToSql for Raw {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

/// An outbox is in a database of UTF-8: what is not UTF-8, and the byte 0, never becomes an event.
#[tokio::test]
async fn inv_1_invalid_utf_8_is_refused_at_the_publisher() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    let client = scene.postgres.connect().await?;
    for bytes in [
        &b"\xff"[..],
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\xf5\x80\x80\x80",
        b"a\0b",
    ] {
        let raw = Raw(bytes);
        for sql in [
            "insert into pillarbox.event (event_type, event_context) values ($1, '{}')",
            "insert into pillarbox.event (event_type, event_context) values ('x', $1)",
            "insert into pillarbox.event (event_type, event_context, environment) values ('x', '{}', $1)",
            "select pillarbox.publish($1, '{}')",
        ] {
            let refused = client.execute(sql, &[&raw]).await.err();
            let code = refused.as_ref().and_then(tokio_postgres::Error::code);
            ensure!(
                code == Some(&SqlState::CHARACTER_NOT_IN_REPERTOIRE),
                "{sql} of {bytes:?}: {refused:?}"
            );
        }
    }
    let oracle = Oracle::new();
    publish(&scene, &oracle, &events(1, 1)).await?;
    let verdict = scene.holds_when_drained(&oracle).await?;
    assert_eq!(verdict.delivered, 1);
    Ok(())
}

/// Batches of one row, and transactions that leave none.
async fn one_row_or_none(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    let mut client = scene.postgres.connect().await?;
    for event in events(20, 1) {
        commit(&mut client, &oracle, Way::Insert, &[event]).await?;
        let undone = client.transaction().await?;
        Way::Insert.publish(&undone, &events(3, 1)).await?;
        undone.rollback().await?;
    }
    let said = scene.drain_with(&[("MAX_ROWS", "1")]).await?;
    assert_eq!(said, "drained 20 batches, 20 rows");
    // Nothing but what was rolled back: no batch.
    let undone = client.transaction().await?;
    Way::Insert.publish(&undone, &events(3, 1)).await?;
    undone.rollback().await?;
    assert_eq!(scene.drain().await?, "drained 0 batches, 0 rows");
    scene.holds_when_drained(&oracle).await?;
    Ok(())
}

#[tokio::test]
async fn inv_1_and_2_batches_of_one_row_or_none_on_clickhouse_18() -> Result<()> {
    one_row_or_none(Flavour::V18).await
}

#[tokio::test]
async fn inv_1_and_2_batches_of_one_row_or_none_on_clickhouse_26() -> Result<()> {
    one_row_or_none(Flavour::V26).await
}
