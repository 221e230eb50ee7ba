//! Publishing in a `tokio_postgres::Transaction`: one round trip with an unnamed statement whose
//! parameter types are given, so that nothing is prepared, and PgBouncer may hand out another
//! server connection for each transaction.
//!
//! ```compile_fail,E0277
//! async fn outside(client: &mut tokio_postgres::Client, event: &pillarbox::RawEvent) {
//!     pillarbox::publish(client, event).await;
//! }
//! ```

use bytes::BytesMut;
use tokio_postgres::Transaction;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::Error;
use crate::outbox::sealed::Insert;
use crate::outbox::{Outbox, Row};
use crate::statement::{Batch, Json, PUBLISH, PUBLISH_BATCH, Single};
use crate::timestamp::Timestamp;

type ToSqlResult = Result<IsNull, Box<dyn std::error::Error + Sync + Send>>;

impl Outbox for Transaction<'_> {}

impl Insert for Transaction<'_> {
    async fn insert(&mut self, rows: &[Row<'_>]) -> Result<(), Error> {
        let sent = match rows {
            [row] => publish(self, &Single::new(row)).await,
            rows => publish_batch(self, &Batch::new(rows)).await,
        };
        sent.map_err(|error| Error::Database(error.into()))
    }
}

async fn publish(tx: &Transaction<'_>, row: &Single<'_>) -> Result<(), tokio_postgres::Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 7] = [
        (&row.event_type, Type::TEXT),
        (&row.event_context, Type::JSON),
        (&row.event_date_time, Type::TIMESTAMPTZ),
        (&row.environment, Type::TEXT),
        (&row.metadata_version, Type::INT8),
        (&row.event_id, Type::UUID),
        (&row.trace_parent, Type::TEXT),
    ];
    tx.query_typed(PUBLISH, &parameters).await.map(drop)
}

async fn publish_batch(
    tx: &Transaction<'_>,
    rows: &Batch<'_>,
) -> Result<(), tokio_postgres::Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 7] = [
        (&rows.event_types, Type::TEXT_ARRAY),
        (&rows.event_contexts, Type::JSON_ARRAY),
        (&rows.event_date_times, Type::TIMESTAMPTZ_ARRAY),
        (&rows.environments, Type::TEXT_ARRAY),
        (&rows.metadata_versions, Type::INT8_ARRAY),
        (&rows.event_ids, Type::UUID_ARRAY),
        (&rows.trace_parents, Type::TEXT_ARRAY),
    ];
    tx.query_typed(PUBLISH_BATCH, &parameters).await.map(drop)
}

impl ToSql for Json<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> ToSqlResult {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }

    to_sql_checked!();
}

impl ToSql for Timestamp {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> ToSqlResult {
        out.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}
