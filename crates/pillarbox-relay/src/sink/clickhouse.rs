//! The ClickHouse sink: one block, one insert, one Native block, one token.
//!
//! `deliver` returning *delivered* means that the server read the whole block and said so after it
//! was written; with the guarantee `token` the same block sent again is written once (INV-2). The
//! path of an event: `native` encodes it, `client` sends it, `verdict` reads the answer, `lookup`
//! settles what remained unknown.

mod answer;
mod client;
mod code;
mod column;
mod config;
mod create;
mod digest;
mod events;
mod lookup;
mod mapping;
mod native;
mod partition;
mod payload;
mod plan;
mod preflight;
mod report;
mod settings;
mod sql;
mod table;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

pub use self::config::{ClickHouseConfig, Compression};
pub use self::create::{CreateOptions, Dialect, statements};
pub use self::events::{EVENTS_MAX, EventFilter, EventRow};
pub use self::native::NativeEncoder;
pub use self::plan::{ClickHousePlan, Window};
pub use self::report::{ColumnReport, SinkReport};

use self::client::Client;
use super::{Delivery, Doubt, Guarantee, Insert, OutboxColumn, Resolution, Sink, Trouble};

/// A failing materialized view gets the same token again so often before the sink stops.
const VIEW_FAILURES_MAX: u32 = 5;

/// A table of ClickHouse as the destination of events.
pub struct ClickHouse {
    config: ClickHouseConfig,
    client: Client,
    table: String,
    /// How often a view failed, by token; a block leaves when it is delivered.
    view_failures: Mutex<BTreeMap<String, u32>>,
}

impl ClickHouse {
    /// A sink that has not connected yet.
    ///
    /// # Errors
    /// When an address in the configuration is not one.
    pub fn new(config: ClickHouseConfig) -> Result<Self, Trouble> {
        let client = Client::new(&config).map_err(verdict::refuse)?;
        let table = sql::table(&config.database, &config.table);
        Ok(Self {
            config,
            client,
            table,
            view_failures: Mutex::default(),
        })
    }

    /// Rows and digest of what the table holds of the batch whose column `batch` is `sink_value`
    /// (INV-13).
    ///
    /// # Errors
    /// When the table has no column `batch` or cannot be asked.
    pub async fn held(
        &self,
        plan: &ClickHousePlan,
        sink_value: u64,
    ) -> Result<(u64, u64), Trouble> {
        lookup::held(&self.client, plan, &self.table, sink_value).await
    }

    /// Creates database and table, the best that the server knows, and returns the statements.
    ///
    /// # Errors
    /// When the server cannot be asked, or the table exists.
    pub async fn create(&self, options: &CreateOptions) -> Result<Vec<String>, Trouble> {
        create::create(&self.client, &self.config, options).await
    }

    /// Which statements [`ClickHouse::create`] would choose.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn dialect(&self) -> Result<Dialect, Trouble> {
        create::dialect(&self.client).await
    }

    /// Reads events, newest first.
    ///
    /// # Errors
    /// When a filter is not valid or the table cannot be asked.
    pub async fn read_events(&self, filter: &EventFilter) -> Result<Vec<EventRow>, Trouble> {
        events::read(&self.client, &self.config, filter).await
    }

    fn note_view_failure(&self, token: String) {
        let mut failures = self
            .view_failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *failures.entry(token).or_default() += 1;
    }

    fn view_failures(&self, token: &str) -> u32 {
        let failures = self
            .view_failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        failures.get(token).copied().unwrap_or(0)
    }

    fn forget_view_failures(&self, token: &str) {
        let mut failures = self
            .view_failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        failures.remove(token);
    }
}

impl fmt::Debug for ClickHouse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClickHouse")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Sink for ClickHouse {
    type Plan = ClickHousePlan;

    async fn prepare(&self, outbox: &[OutboxColumn]) -> Result<ClickHousePlan, Trouble> {
        preflight::plan(&self.client, &self.config, outbox).await
    }

    async fn deliver(&self, plan: &ClickHousePlan, insert: &Insert<'_>, attempt: u32) -> Delivery {
        let token = insert.token();
        let query_id = format!("{}-{}-{attempt}", insert.batch.batch_id, insert.ordinal);
        let comment = format!(
            "pillarbox batch {} block {}",
            insert.batch.number, insert.ordinal
        );
        let mut parameters: Vec<(&str, &str)> = plan.0.settings.clone();
        parameters.push(("query_id", &query_id));
        if plan.0.guarantee == Guarantee::Token {
            parameters.push((settings::TOKEN, &token));
        }
        if plan.0.has_log_comment {
            parameters.push((settings::LOG_COMMENT, &comment));
        }
        match self
            .client
            .insert(&plan.0.insert, &parameters, insert.body)
            .await
        {
            Ok(success) => {
                self.forget_view_failures(&token);
                Delivery::Delivered(success.server)
            }
            Err(fault) => {
                if verdict::blames_view(&fault) {
                    self.note_view_failure(token);
                }
                verdict::judge(&fault, attempt)
            }
        }
    }

    async fn resolve(
        &self,
        plan: &ClickHousePlan,
        insert: &Insert<'_>,
        doubt: Doubt,
    ) -> Result<Resolution, Trouble> {
        if self.view_failures(&insert.token()) >= VIEW_FAILURES_MAX {
            // Whoever resumes the sink has mended the view: it gets its attempts again.
            self.forget_view_failures(&insert.token());
            return Ok(Resolution::Undecidable(verdict::refuse(format!(
                "a materialized view of {} failed {VIEW_FAILURES_MAX} times on block {} of batch {}; \
                 mend or drop the view, then resume the sink",
                self.table, insert.ordinal, insert.batch.number
            ))));
        }
        lookup::resolve(&self.client, plan, &self.table, insert, doubt).await
    }

    async fn highest_number(
        &self,
        plan: &ClickHousePlan,
        origin: u32,
    ) -> Result<Option<i64>, Trouble> {
        lookup::highest_number(&self.client, plan, &self.table, origin).await
    }
}
