//! What a DBA sets for applications, on the database and on the relay's user: limits, an isolation
//! level, a search path with look-alikes in it.

use anyhow::Result;
use pillarbox_relay::schema;
use pillarbox_testkit::servers::{Flavour, PgVersion, Postgres};

use crate::scene::Scene;
use crate::traffic::Traffic;

/// For publishers too: nothing here is a limit of time.
const DATABASE: &str = "
    alter database postgres set default_transaction_isolation = 'serializable';
    alter database postgres set row_security = off;
    alter database postgres set timezone = 'Asia/Kathmandu';
    alter database postgres set datestyle = 'German';
    alter database postgres set intervalstyle = 'sql_standard';
    alter database postgres set bytea_output = 'escape';
    alter database postgres set extra_float_digits = -15;
    alter database postgres set xmlbinary = 'hex';
    alter database postgres set standard_conforming_strings = on;
    alter database postgres set array_nulls = off;
    alter database postgres set search_path = 'shadow', 'public', 'pg_catalog';
";

/// What would be found by whoever does not say which schema it means.
const SHADOW: &str = "
    create schema shadow;
    create table shadow.event (like pillarbox.event);
    create table shadow.settings (n int);
    create function shadow.pg_current_xact_id() returns xid8 language sql as 'select ''1''::xid8';
    create function shadow.pg_current_snapshot() returns pg_snapshot
        language sql as 'select ''1:1:''::pg_snapshot';
    create function shadow.clock_timestamp() returns timestamptz
        language sql as 'select ''epoch''::timestamptz';
    create function shadow.now() returns timestamptz language sql as 'select ''epoch''::timestamptz';
    create function shadow.gen_random_uuid() returns uuid
        language sql as 'select ''00000000-0000-0000-0000-000000000000''::uuid';
    create function shadow.length(text) returns integer language sql as 'select 0';
    create function shadow.octet_length(text) returns integer language sql as 'select 2000000000';
    create function shadow.min(int) returns int language sql as 'select 0';
    create function shadow.unequal(xid8, xid8) returns boolean language sql as 'select false';
    create operator shadow.= (leftarg = xid8, rightarg = xid8, function = shadow.unequal);
    create operator shadow.>= (leftarg = xid8, rightarg = xid8, function = shadow.unequal);
    create operator shadow.< (leftarg = xid8, rightarg = xid8, function = shadow.unequal);
    grant usage on schema shadow to public;
    grant execute on all functions in schema shadow to public;
";

const RELAY: &str = "
    create role mover login;
    grant pillarbox_relay to mover;
    alter role mover set statement_timeout = '50ms';
    alter role mover set lock_timeout = '1ms';
    alter role mover set idle_in_transaction_session_timeout = '50ms';
    alter role mover set idle_session_timeout = '50ms';
    alter role mover set default_transaction_isolation = 'repeatable read';
    alter role mover set default_transaction_read_only = on;
    alter role mover set default_transaction_deferrable = on;
    alter role mover set synchronous_commit = off;
    alter role mover set enable_indexscan = off;
    alter role mover set enable_nestloop = off;
    alter role mover set work_mem = '64kB';
    alter role mover set search_path = 'shadow';
";

async fn limits_of_others(version: PgVersion, flavour: Flavour) -> Result<()> {
    let postgres = Postgres::start(version).await?;
    // They are there before the schema is.
    postgres.execute(DATABASE).await?;
    let scene = Scene::on(postgres, flavour).await?;
    scene.postgres.execute(SHADOW).await?;
    scene.postgres.execute(RELAY).await?;
    let mut client = scene.postgres.connect().await?;
    schema::migrate(&mut client).await?;
    let url = scene.postgres.url_for("postgres", "mover", None)?;
    scene
        .postgres
        .execute("create table public.business (id uuid primary key)")
        .await?;
    let traffic = Traffic::start(&scene.postgres, 4, true).await?;
    let relay = scene.running_with(&[("DATABASE_URL", &url)])?;
    traffic.more(200).await?;
    let oracle = traffic.finish(&scene.postgres).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_limits_of_a_dba_on_postgresql_15_before_clickhouse_26() -> Result<()> {
    limits_of_others(PgVersion::V15, Flavour::V26).await
}

#[tokio::test]
async fn inv_2_limits_of_a_dba_on_postgresql_18_before_clickhouse_18() -> Result<()> {
    limits_of_others(PgVersion::V18, Flavour::V18).await
}
