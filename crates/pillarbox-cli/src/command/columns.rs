//! `pillarbox columns`: where each column of a sink comes from, and adding one to both sides.

use std::time::Duration;

use clap::{Args, Subcommand};
use pillarbox_relay::config::Period;
use pillarbox_relay::schema::{self, column, column::NewColumn};
use pillarbox_relay::sink::OutboxColumn;
use pillarbox_relay::sink::clickhouse::ColumnPlan;
use pillarbox_relay::source::postgres::outbox_columns;
use serde_json::json;

use crate::destination::Destination;
use crate::exit::{Exit, Outcome};
use crate::{Place, output};

/// Show where each column comes from, or add one
#[derive(Debug, Args)]
#[command(after_help = "\
Without a subcommand: every column of the outbox and of the sink's table, its types, where its value comes
from, and the statements that would bring both sides together. Columns are mapped by name; a running relay
notices what changes by itself. Columns that are computed, and values that are redacted, are configured under
[sinks.NAME]: see `pillarbox init`. docs/TYPES.md lists the types.

Examples:
  pillarbox columns
  pillarbox columns --sink audit --json
  pillarbox columns add tenant_id text
  pillarbox columns add amount 'numeric(12,2)' --not-null --default 0 --sink-type 'Decimal(12, 2)'")]
pub(crate) struct Columns {
    /// Configured sink [default: the only one]
    #[arg(long, value_name = "NAME", global = true)]
    sink: Option<String>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(Add),
}

/// Add a column to the sink's table, then to the outbox
#[derive(Debug, Args)]
#[command(after_help = "\
The table comes first, so that no event with a value in the new column is delivered without it. The outbox
is locked for milliseconds at a time: publishers are never held up, and the command tries again until it finds
a gap between their transactions. It says who is in the way.")]
struct Add {
    /// Name, on both sides
    name: String,

    /// Type in PostgreSQL
    #[arg(value_name = "TYPE")]
    of: String,

    /// Type in the sink [default: the one that fits best]
    #[arg(long, value_name = "TYPE")]
    sink_type: Option<String>,

    /// What publishers that do not know the column give it
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    default: Option<String>,

    /// Refuse null; needs --default
    #[arg(long, requires = "default")]
    not_null: bool,

    /// How long to try
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = patience)]
    patience: Duration,

    /// Print the statements instead of running them
    #[arg(long)]
    print: bool,
}

fn patience(text: &str) -> Result<Duration, String> {
    let period: Result<Period, _> = text.parse();
    period
        .map(|period| period.0)
        .map_err(|error| error.to_string())
}

impl Columns {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let destination = Destination::find(&place.config()?, self.sink.as_deref())?;
        match self.command {
            None => show(place, &destination).await,
            Some(Command::Add(add)) => add.run(place, &destination).await,
        }
    }
}

async fn show(place: &Place, destination: &Destination) -> Outcome {
    let session = place.session().await?;
    schema::check_version(session.client()).await?;
    let outbox = outbox_columns(session.client(), &destination.expressions).await?;
    let plans = destination.sink.columns(&outbox).await;
    let plans = plans.map_err(|trouble| destination.blame(trouble))?;
    let redacted: Vec<String> = destination
        .config
        .redacted
        .iter()
        .map(|path| path.join("."))
        .collect();
    if place.json {
        output::json(&json!({
            "sink": destination.name, "table": destination.table(), "columns": plans, "redacted": redacted,
        }))?;
        return Ok(Exit::Done);
    }
    let mut table = output::table(&["column", "outbox", "sink", "where the value comes from"]);
    let or_none = |of: &Option<String>| of.clone().unwrap_or_else(|| "–".to_owned());
    for plan in &plans {
        let (outbox, sink) = (or_none(&plan.outbox_type), or_none(&plan.sink_type));
        table.add_row([&plan.name, &outbox, &sink, &plan.source]);
    }
    output::show(&table)?;
    if !redacted.is_empty() {
        output::line(format!(
            "redacted in event_context: {}",
            redacted.join(", ")
        ))?;
    }
    show_ddl(&plans)
}

/// The statements that would bring both sides together.
fn show_ddl(plans: &[ColumnPlan]) -> Outcome {
    for (side, of) in [
        (
            "clickhouse",
            (|plan| &plan.sink_ddl) as fn(&ColumnPlan) -> &Option<String>,
        ),
        ("postgresql", |plan| &plan.outbox_ddl),
    ] {
        let statements: Vec<&String> = plans.iter().filter_map(|plan| of(plan).as_ref()).collect();
        if statements.is_empty() {
            continue;
        }
        output::line(format!("\n-- in {side}, to bring both sides together:"))?;
        for statement in statements {
            output::line(format!("{statement};"))?;
        }
    }
    if plans.iter().any(|plan| plan.outbox_ddl.is_some()) {
        output::next(
            "an ALTER TABLE that waits holds up publishers; pillarbox columns add NAME TYPE does not",
        );
    }
    Ok(Exit::Done)
}

impl Add {
    async fn run(self, place: &Place, destination: &Destination) -> Outcome {
        let column = NewColumn {
            name: self.name,
            of: self.of,
            default: self.default,
            not_null: self.not_null,
        };
        let mut session = place.session().await?;
        schema::check_version(session.client()).await?;
        let wanted = OutboxColumn {
            name: column.name.clone(),
            type_oid: column::check(session.client(), &column).await?,
            type_name: column.of.clone(),
            not_null: column.not_null,
            expression: None,
        };
        let (sink, sink_type) = (&destination.sink, self.sink_type.as_deref());
        let sink_ddl = match self.print {
            true => sink.column_statement(&wanted, sink_type).await,
            false => sink.add_column(&wanted, sink_type).await,
        };
        let sink_ddl = sink_ddl.map_err(|trouble| destination.blame(trouble))?;
        let outbox_ddl = column.statements()?;
        if self.print {
            output::line(format!("-- in clickhouse\n{sink_ddl};\n-- in postgresql"))?;
            outbox_ddl
                .iter()
                .try_for_each(|ddl| output::line(format!("{ddl};")))?;
            return Ok(Exit::Done);
        }
        let mut last = String::new();
        let told = |keepers: &str| {
            if last != keepers {
                eprintln!("the outbox is in use, trying again: {keepers}");
                keepers.clone_into(&mut last);
            }
        };
        column::add(session.client_mut(), &column, self.patience, told).await?;
        if place.json {
            let [add, grant] = &outbox_ddl;
            let ran =
                json!({ "column": column.name, "sink_ddl": sink_ddl, "outbox_ddl": [add, grant] });
            output::json(&ran)?;
            return Ok(Exit::Done);
        }
        output::line(format!("added the column {} to both sides", column.name))?;
        output::next(&format!(
            "publish it: insert into pillarbox.event (event_type, event_context, {}) values (…)",
            column.name
        ));
        Ok(Exit::Done)
    }
}
