//! One backlog, and drains of it that are compared with it.

use anyhow::Result;

use super::contender::{Contender, Took};
use super::content::{self, Content};
use crate::report::Report;
use crate::stage::Outbox;

/// A backlog, what it holds, and the tables that it is drained into.
pub(crate) struct Field<'a> {
    pub(crate) outbox: &'a Outbox<'a>,
    name: &'a str,
    pub(crate) content: Content,
    /// The table of `pillarbox sink create`, but with the five columns only.
    pub(crate) five: String,
    /// Drains so far: each has a table of its own.
    drains: usize,
}

impl<'a> Field<'a> {
    /// Drains once without a figure, as the first reader of a backlog writes hint bits, and proves that by
    /// `pillarbox verify` too.
    pub(crate) async fn new(
        outbox: &'a Outbox<'a>,
        name: &'a str,
        report: &mut Report,
    ) -> Result<Self> {
        let client = outbox.connect().await?;
        let content = content::of_postgres(&client, "pillarbox.event").await?;
        drop(client);
        let mut field = Self {
            outbox,
            name,
            content,
            five: String::new(),
            drains: 0,
        };
        let (table, _) = field.drain_kept(Contender::Pillarbox).await?;
        field.five = field.five_columns(&table).await?;
        let config = outbox.config(&table);
        outbox.pillarbox(&["verify", &table], Some(&config)).await?;
        field.close(Contender::Pillarbox, &table, report).await?;
        Ok(field)
    }

    /// What follows `create table NAME` for a table with the five columns, and engine, partition and order of ours.
    async fn five_columns(&self, table: &str) -> Result<String> {
        let stage = self.outbox.stage;
        let engine =
            format!("select engine_full from system.tables where name = '{table}' format TSVRaw");
        let engine = stage.statement(&engine, &[], "").await?;
        let time = format!(
            "select type from system.columns where table = '{table}' and name = 'event_date_time'
             format TSVRaw"
        );
        let time = stage.statement(&time, &[], "").await?;
        Ok(format!(
            "(event_type String, event_date_time {}, environment String, event_context String, \
             metadata_version UInt64) engine = {}",
            time.trim(),
            engine.trim()
        ))
    }

    /// Drains into a table, and gives its name.
    pub(crate) async fn drain_kept(&mut self, by: Contender) -> Result<(String, Took)> {
        self.drains += 1;
        let table = format!("drain_{}_{}", self.name.to_lowercase(), self.drains);
        let took = by.drain(self.outbox, &table, &self.five).await?;
        Ok((table, took))
    }

    /// Compares a table with the backlog, and drops it.
    pub(crate) async fn close(
        &self,
        by: Contender,
        table: &str,
        report: &mut Report,
    ) -> Result<()> {
        compare(self.outbox, self.content, by, table, report).await?;
        if by == Contender::Pillarbox {
            let config = self.outbox.config(table);
            let retire = ["sink", "retire", table, "--yes"];
            self.outbox.pillarbox(&retire, Some(&config)).await?;
        }
        Ok(())
    }

    /// One drain, compared.
    pub(crate) async fn drain(&mut self, by: Contender, report: &mut Report) -> Result<Took> {
        let (table, took) = self.drain_kept(by).await?;
        self.close(by, &table, report).await?;
        Ok(took)
    }
}

/// Fails the run when a table does not hold what it should, and drops it.
pub(crate) async fn compare(
    outbox: &Outbox<'_>,
    content: Content,
    by: Contender,
    table: &str,
    report: &mut Report,
) -> Result<()> {
    let found = content::of_clickhouse(outbox.stage, table).await?;
    if found != content {
        report.fail(format!(
            "{} drained other events than it was given: {found:?}, not {content:?}",
            by.name()
        ));
    }
    let drop = format!("drop table {table}");
    outbox.stage.statement(&drop, &[], "").await?;
    Ok(())
}
