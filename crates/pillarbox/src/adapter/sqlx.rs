//! Publishing in a `sqlx::Transaction<'_, sqlx::Postgres>`.
//!
//! sqlx prepares every statement in a round trip of its own. A named one is prepared once for each
//! connection, and fails behind a PgBouncer in transaction mode that does not track prepared
//! statements; an unnamed one works everywhere and costs that round trip each time. This adapter
//! does what the application does: a named statement on a connection where the application has one
//! itself, an unnamed one elsewhere.
//!
//! ```compile_fail,E0277
//! async fn outside(pool: &mut sqlx::PgPool, event: &pillarbox::RawEvent) {
//!     pillarbox::publish(pool, event).await;
//! }
//! ```
//! ```compile_fail,E0277
//! async fn outside(connection: &mut sqlx::PgConnection, event: &pillarbox::RawEvent) {
//!     pillarbox::publish(connection, event).await;
//! }
//! ```

use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};
use sqlx::{Connection, Postgres, Transaction, Type};

use crate::Error;
use crate::outbox::sealed::Insert;
use crate::outbox::{Outbox, Row};
use crate::statement::{Batch, Json, PUBLISH, PUBLISH_BATCH, Single};
use crate::timestamp::Timestamp;

/// Fixed by PostgreSQL in pg_type.dat, as are the three below.
const JSON: PgTypeInfo = PgTypeInfo::with_oid(Oid(114));
const JSON_ARRAY: PgTypeInfo = PgTypeInfo::with_oid(Oid(199));
const TIMESTAMPTZ: PgTypeInfo = PgTypeInfo::with_oid(Oid(1184));
const TIMESTAMPTZ_ARRAY: PgTypeInfo = PgTypeInfo::with_oid(Oid(1185));

impl Outbox for Transaction<'_, Postgres> {}

impl Insert for Transaction<'_, Postgres> {
    async fn insert(&mut self, rows: &[Row<'_>]) -> Result<(), Error> {
        let sent = match rows {
            [row] => publish(self, Single::new(row)).await,
            rows => publish_batch(self, Batch::new(rows)).await,
        };
        sent.map_err(|error| Error::Database(error.into()))
    }
}

async fn publish(tx: &mut Transaction<'_, Postgres>, row: Single<'_>) -> Result<(), sqlx::Error> {
    sqlx::query(PUBLISH)
        .bind(row.event_type)
        .bind(row.event_context)
        .bind(row.event_date_time)
        .bind(row.environment)
        .bind(row.metadata_version)
        .bind(row.event_id)
        .bind(row.trace_parent)
        .persistent(application_names_statements(tx))
        .execute(&mut **tx)
        .await
        .map(drop)
}

async fn publish_batch(
    tx: &mut Transaction<'_, Postgres>,
    rows: Batch<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(PUBLISH_BATCH)
        .bind(rows.event_types)
        .bind(rows.event_contexts)
        .bind(rows.event_date_times)
        .bind(rows.environments)
        .bind(rows.metadata_versions)
        .bind(rows.event_ids)
        .bind(rows.trace_parents)
        .persistent(application_names_statements(tx))
        .execute(&mut **tx)
        .await
        .map(drop)
}

fn application_names_statements(tx: &Transaction<'_, Postgres>) -> bool {
    tx.cached_statements_size() > 0
}

impl Type<Postgres> for Json<'_> {
    fn type_info() -> PgTypeInfo {
        JSON
    }
}

impl PgHasArrayType for Json<'_> {
    fn array_type_info() -> PgTypeInfo {
        JSON_ARRAY
    }
}

impl Encode<'_, Postgres> for Json<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn size_hint(&self) -> usize {
        self.0.len()
    }
}

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        TIMESTAMPTZ
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        TIMESTAMPTZ_ARRAY
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
    }
}
