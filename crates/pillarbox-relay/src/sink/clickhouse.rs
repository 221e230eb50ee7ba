//! The ClickHouse sink: one block, one insert, one Native block, one token.
//!
//! `deliver` returning *delivered* means that the server read the whole block and said so after it
//! was written; with the guarantee `token` the same block sent again is written once (INV-2). The
//! path of an event: `native` encodes it, `client` sends it, `verdict` reads the answer, `lookup`
//! settles what remained unknown.

mod alter;
mod answer;
mod client;
mod code;
mod column;
mod columns;
mod config;
mod connector;
mod create;
mod decimal;
mod digest;
mod doubts;
mod events;
mod fence;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod health;
mod identities;
mod lookup;
mod mapping;
mod native;
mod order;
mod partition;
mod payload;
mod pieces;
mod plan;
mod pool;
mod preflight;
mod proof;
mod propose;
mod replicas;
mod report;
mod scratch;
mod settings;
mod settled;
mod sql;
mod surplus;
mod table;
#[cfg(test)]
mod tests;
mod value;
mod verdict;

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;
use std::time::SystemTime;

pub use self::columns::ColumnPlan;
pub use self::config::{ClickHouseConfig, Compression};
pub use self::create::{CreateOptions, Dialect, statements};
pub use self::events::{EVENTS_MAX, EventFilter, EventRow};
pub use self::health::{Disk, Health, Parts, Replica};
pub use self::identities::Sought;
pub use self::native::NativeEncoder;
pub use self::plan::ClickHousePlan;
pub use self::report::{ColumnReport, SinkReport};

use uuid::Uuid;

use self::client::Client;
use self::doubts::Doubts;
use self::fence::{Fence, Fenced};
use crate::verify::Held;

use super::{
    Attempt, Delivery, Doubt, Guarantee, Insert, Look, OutboxColumn, Reaction, Resolution, Sink,
    Terms, Trouble,
};
use crate::batch::{NUMBER_BITS, sink_value};

/// The last number of a batch.
const NUMBER_MAX: i64 = (1 << NUMBER_BITS) - 1;

/// A failing materialized view gets the same token again so often before the sink stops.
const VIEW_FAILURES_MAX: u32 = 5;

/// A table of ClickHouse as the destination of events.
pub struct ClickHouse {
    config: ClickHouseConfig,
    client: Client,
    table: String,
    doubts: Doubts,
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
            doubts: Doubts::default(),
        })
    }

    /// Whether the table keeps the identity of events, so that one can look for them.
    pub fn keeps_identities(&self, plan: &ClickHousePlan) -> bool {
        identities::keeps(plan)
    }

    /// Waits until nothing is being inserted into the table, and all replicas hold the same.
    ///
    /// # Errors
    /// When a server cannot be asked, or an insert does not end within two minutes.
    pub async fn settle(&self, plan: &ClickHousePlan) -> Result<(), Trouble> {
        identities::settle(&self.client, plan, &self.table).await
    }

    /// Which of the events the table holds, whatever batch brought them.
    ///
    /// # Errors
    /// When the table does not keep identities or cannot be asked.
    pub async fn holds(
        &self,
        plan: &ClickHousePlan,
        sought: &[Sought],
    ) -> Result<HashSet<Uuid>, Trouble> {
        identities::held(&self.client, plan, &self.table, sought).await
    }

    /// How many rows lie among these events and have no identity: each may be one of them.
    ///
    /// # Errors
    /// When the table does not keep identities or cannot be asked.
    pub async fn unidentified(
        &self,
        plan: &ClickHousePlan,
        sought: &[Sought],
    ) -> Result<u64, Trouble> {
        identities::unidentified(&self.client, plan, &self.table, sought).await
    }

    /// What the table holds of the batches with these terms whose column `batch` lies between two
    /// values, both included, by batch and partition (INV-13).
    ///
    /// # Errors
    /// When the table has no column `batch` or cannot be asked.
    pub async fn held_between(
        &self,
        plan: &ClickHousePlan,
        terms: Option<&Terms>,
        values: RangeInclusive<u64>,
    ) -> Result<Vec<Held>, Trouble> {
        lookup::held_between(&self.client, plan, &self.table, terms, values).await
    }

    /// Creates database and table, the best that the server knows, and returns the statements.
    ///
    /// # Errors
    /// When the server cannot be asked, or the table exists.
    pub async fn create(&self, options: &CreateOptions) -> Result<Vec<String>, Trouble> {
        create::create(&self.client, &self.config, options).await
    }

    /// Creates the table that the server is best at, and never a database: for a benchmark.
    ///
    /// # Errors
    /// When the server cannot be asked, the database is missing, or the table exists.
    pub async fn create_scratch(&self) -> Result<(), Trouble> {
        scratch::create(&self.client, &self.config).await
    }

    /// Drops a table of the sink's database that a benchmark made, where it is there.
    ///
    /// # Errors
    /// When the server cannot be asked, or refuses.
    pub async fn drop_scratch(&self, table: &str) -> Result<(), Trouble> {
        scratch::drop(&self.client, &self.config, table).await
    }

    /// The names of all tables of the sink's database.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn tables(&self) -> Result<Vec<String>, Trouble> {
        scratch::list(&self.client, &self.config).await
    }

    /// What the server says of itself, without a look at what it must be for the sink.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn health(&self) -> Result<Health, Trouble> {
        health::ask(&self.client, &self.config).await
    }

    /// Which statements [`ClickHouse::create`] would choose.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn dialect(&self) -> Result<Dialect, Trouble> {
        create::dialect(&self.client).await
    }

    /// Which column comes from where, and what would bring both sides together.
    ///
    /// # Errors
    /// When the table is not there or cannot be asked.
    pub async fn columns(&self, outbox: &[OutboxColumn]) -> Result<Vec<ColumnPlan>, Trouble> {
        alter::columns(&self.client, &self.config, outbox).await
    }

    /// The statement that adds a column to the table. With no type, one that fits.
    ///
    /// # Errors
    /// When the server cannot be asked, or the type is none that fits.
    pub async fn column_statement(
        &self,
        column: &OutboxColumn,
        of: Option<&str>,
    ) -> Result<String, Trouble> {
        alter::column_statement(&self.client, &self.config, column, of).await
    }

    /// Adds a column to the table, where it has none of that name; returns the statement.
    ///
    /// # Errors
    /// When the server refuses it, or knows no type that fits.
    pub async fn add_column(
        &self,
        column: &OutboxColumn,
        of: Option<&str>,
    ) -> Result<String, Trouble> {
        alter::add_column(&self.client, &self.config, column, of).await
    }

    /// Reads events, newest first.
    ///
    /// # Errors
    /// When a filter is not valid or the table cannot be asked.
    pub async fn read_events(&self, filter: &EventFilter) -> Result<Vec<EventRow>, Trouble> {
        events::read(&self.client, &self.config, filter).await
    }

    /// Looks at a block that was in doubt and has been answered with success: a table may remember
    /// the token of rows that it does not hold, and the earlier attempt may have come through too.
    async fn verify(&self, plan: &ClickHousePlan, insert: &Insert<'_>, server: String) -> Delivery {
        let token = insert.token();
        let (client, table) = (&self.client, &self.table);
        let strictness = match plan.0.guarantee {
            Guarantee::Token => Fence::OfThoseThatAnswer,
            _ => Fence::OfAll,
        };
        let seen = lookup::examine(client, plan, table, insert, Duration::ZERO, strictness).await;
        let (look, gap) = match seen {
            Ok(seen) => (seen.look, seen.gap),
            // The answer is enough.
            Err(_) if plan.0.guarantee == Guarantee::AtLeastOnce => {
                self.doubts.forget(&token);
                return Delivery::Delivered(server);
            }
            Err(trouble) => return Delivery::Unknown(trouble),
        };
        match look {
            Look::Nothing => Delivery::Unknown(gap.unwrap_or_else(|| {
                self.doubts.note_absence(&token);
                self.absent(plan, insert)
            })),
            Look::Other(trouble) if plan.0.guarantee != Guarantee::AtLeastOnce => {
                Delivery::Unknown(trouble)
            }
            _ => {
                self.doubts.forget(&token);
                Delivery::Delivered(server)
            }
        }
    }

    fn absent(&self, plan: &ClickHousePlan, insert: &Insert<'_>) -> Trouble {
        let setting = if plan.0.replicated {
            "replicated_deduplication_window"
        } else {
            "non_replicated_deduplication_window"
        };
        verdict::refuse(format!(
            "clickhouse answered block {} of batch {} with success, but {} does not hold its rows: it \
             remembers their token, and the rows were lost or deleted there; ALTER TABLE {} MODIFY \
             SETTING {setting} = 0; the relay looks again by itself; set it back when the batch is \
             delivered",
            insert.ordinal, insert.batch.number, self.table, self.table
        ))
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

    async fn is_current(&self, plan: &ClickHousePlan) -> bool {
        preflight::is_current(&self.client, &self.config, plan).await
    }

    async fn deliver(
        &self,
        plan: &ClickHousePlan,
        insert: &Insert<'_>,
        attempt: Attempt,
    ) -> Delivery {
        let Attempt { number, begins_by } = attempt;
        let token = insert.token();
        let query_id = format!("{}-{}-{number}", insert.batch.batch_id, insert.ordinal);
        let comment = format!(
            "pillarbox batch {} block {}",
            insert.batch.number, insert.ordinal
        );
        let mut parameters: Vec<(&str, &str)> = plan.0.settings.clone();
        parameters.push(("query_id", &query_id));
        if plan.0.has_token {
            parameters.push((settings::TOKEN, &token));
        }
        if plan.0.has_log_comment {
            parameters.push((settings::LOG_COMMENT, &comment));
        }
        match self
            .client
            .insert(&plan.0.insert, &parameters, insert.body, begins_by)
            .await
        {
            Ok(success) if lookup::can_look(plan, insert) && self.doubts.holds(&token) => {
                self.verify(plan, insert, success.server).await
            }
            Ok(success) => {
                self.doubts.forget(&token);
                Delivery::Delivered(success.server)
            }
            Err(fault) => {
                if verdict::blames_view(&fault) {
                    self.doubts.note_view_failure(&token);
                }
                let delivery = verdict::judge(&fault, number, plan.0.has_token);
                if matches!(delivery, Delivery::Unknown(_)) {
                    self.doubts.note(&token);
                }
                delivery
            }
        }
    }

    async fn resolve(
        &self,
        plan: &ClickHousePlan,
        insert: &Insert<'_>,
        doubt: Doubt,
    ) -> Result<Resolution, Trouble> {
        let token = insert.token();
        self.doubts.note(&token);
        if self.doubts.take_view_failures(&token, VIEW_FAILURES_MAX) {
            return Ok(Resolution::Undecidable(verdict::refuse(format!(
                "a materialized view of {} failed {VIEW_FAILURES_MAX} times on block {} of batch {}; \
                 mend or drop the view; the relay looks again by itself",
                self.table, insert.ordinal, insert.batch.number
            ))));
        }
        // What the plan says may be out of date.
        let remembers = plan.0.guarantee == Guarantee::Token
            && preflight::remembers(&self.client, &self.config, plan).await?;
        if plan.0.guarantee == Guarantee::Token && !remembers && !plan.0.layout.batch {
            return Err(Trouble {
                reaction: Reaction::Replan,
                ..verdict::refuse(format!(
                    "the deduplication window of {} has changed",
                    self.table
                ))
            });
        }
        let (client, table) = (&self.client, &self.table);
        let resolved = lookup::resolve(client, plan, table, insert, doubt, remembers).await?;
        Ok(match resolved {
            Resolution::Resend if self.doubts.take_absence(&token) => {
                Resolution::Undecidable(self.absent(plan, insert))
            }
            Resolution::Delivered(server) => {
                self.doubts.forget(&token);
                Resolution::Delivered(server)
            }
            resolved => resolved,
        })
    }

    async fn look(
        &self,
        plan: &ClickHousePlan,
        insert: &Insert<'_>,
        doubt: Option<Doubt>,
    ) -> Result<Look, Trouble> {
        let (client, table) = (&self.client, &self.table);
        match doubt {
            _ if !lookup::can_look(plan, insert) => match doubt {
                Some(doubt) if table::is_unchanged(client, &self.config, doubt.age).await? => {
                    fence::fence(client, plan, table, insert, Fence::OfAll).await?;
                    Ok(Look::Unchanged)
                }
                _ => Ok(Look::Blind),
            },
            Some(doubt) => {
                let quiet = doubt.quiet;
                let seen = lookup::examine(client, plan, table, insert, quiet, Fence::OfAll);
                Ok(seen.await?.look)
            }
            None => {
                let any = Fenced::not_needed(client);
                Ok(lookup::look(client, plan, table, insert, any).await?.look)
            }
        }
    }

    async fn surplus(
        &self,
        plan: &ClickHousePlan,
        origin: u32,
        known: i64,
        since: SystemTime,
    ) -> Result<Option<i64>, Trouble> {
        let numbers = sink_value(origin, known) + 1..=sink_value(origin, NUMBER_MAX);
        let found = surplus::highest(&self.client, plan, &self.config, numbers, since).await?;
        Ok(found.map(|value| (value & NUMBER_MAX.cast_unsigned()).cast_signed()))
    }

    async fn highest_number(
        &self,
        plan: &ClickHousePlan,
        origin: u32,
    ) -> Result<Option<i64>, Trouble> {
        lookup::highest_number(&self.client, plan, &self.table, origin).await
    }
}
