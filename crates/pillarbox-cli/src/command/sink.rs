//! `pillarbox sink`: creates, checks and retires destinations.

use clap::{Args, Subcommand};
use pillarbox_relay::schema::{self, registry};
use pillarbox_relay::sink::clickhouse::{CreateOptions, SinkReport, statements};
use serde_json::json;

use crate::backlog::{self, counted};
use crate::destination::Destination;
use crate::exit::{Exit, Failure, Outcome};
use crate::{Place, output};

/// ClickHouse: the table is there already.
const TABLE_ALREADY_EXISTS: u32 = 57;

/// Create, check or retire the destination of events
#[derive(Debug, Args)]
pub(crate) struct Sink {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Create(Create),
    Check(Check),
    Retire(Retire),
}

impl Sink {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        match self.action {
            Action::Create(action) => action.run(place).await,
            Action::Check(action) => action.run(place).await,
            Action::Retire(action) => action.run(place).await,
        }
    }
}

/// Create the table where it is missing, check it, and register the sink
#[derive(Debug, Args)]
#[command(after_help = "\
Safe to run at every deployment. An existing table is used as it is, if it can keep the guarantee.
A new sink receives everything that the outbox still holds, unless --from-now is given.

Examples:
  pillarbox sink create
  pillarbox sink create --print          the DDL, for your own migrations
  pillarbox sink create audit --from-now
  pillarbox sink create --cluster main   a replicated table on every server of the cluster")]
struct Create {
    /// Sink as in the configuration [default: the only one, or clickhouse]
    name: Option<String>,

    /// Print the statements that would create the table
    #[arg(long)]
    print: bool,

    /// Start with what commits from now on
    #[arg(long)]
    from_now: bool,

    /// Make the table a ReplicatedMergeTree
    #[arg(long)]
    replicated: bool,

    /// Create a replicated table on every server of this cluster
    #[arg(long, value_name = "CLUSTER")]
    cluster: Option<String>,

    /// Let ClickHouse parse event_context into its JSON type: fast to query by field, but no longer byte
    /// for byte, and not covered by `pillarbox verify`
    #[arg(long)]
    json_context: bool,
}

impl Create {
    async fn run(self, place: &Place) -> Outcome {
        let destination = Destination::find(&place.config()?, self.name.as_deref())?;
        let options = CreateOptions {
            replicated: self.replicated || self.cluster.is_some(),
            cluster: self.cluster,
            json: self.json_context,
        };
        if self.print {
            let dialect = destination.sink.dialect().await;
            let dialect = dialect.map_err(|trouble| destination.blame(trouble))?;
            for statement in statements(&destination.config, &options, dialect) {
                output::line(format!("{statement};"))?;
            }
            return Ok(Exit::Done);
        }
        let session = place.session().await?;
        let client = session.client();
        schema::check_version(client).await?;
        let name = &destination.name;
        let known = registry::list(client).await?;
        let known = known.into_iter().find(|sink| sink.name == *name);
        if known.as_ref().is_some_and(|sink| sink.retired) {
            return Err(Failure::refused(format!(
                "the sink {name} was retired; register a new one under another name"
            )));
        }
        if let Some(known) = &known {
            check_fingerprint(
                &destination.name,
                &destination.fingerprint(),
                &known.fingerprint,
            )?;
        }
        let (created, report) = ensure_table(&destination, client, &options).await?;
        if known.is_none() {
            let start = match self.from_now {
                true => registry::Start::Now,
                false => registry::Start::Outbox,
            };
            registry::register(client, name, &destination.fingerprint(), start).await?;
        }
        if place.json {
            output::json(&json!({
                "sink": name,
                "table_created": created,
                "registered": known.is_none(),
                "report": report,
            }))?;
            return Ok(Exit::Done);
        }
        let table = destination.table();
        output::line(match created {
            true => format!("created the table {table} (clickhouse {})", report.version),
            false => format!("the table {table} is there (clickhouse {})", report.version),
        })?;
        output::line(match known {
            None => format!("registered the sink {name}, guarantee {}", report.guarantee),
            Some(_) => format!(
                "the sink {name} is registered already, guarantee {}",
                report.guarantee
            ),
        })?;
        output::next("deliver: pillarbox relay; or once: pillarbox relay --once");
        Ok(Exit::Done)
    }
}

/// Refuses a configuration that points a registered sink to another table.
pub(crate) fn check_fingerprint(
    sink: &str,
    configured: &str,
    registered: &str,
) -> Result<(), Failure> {
    if configured == registered {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "the sink {sink} is registered for {registered}, but the configuration says {configured}; \
         its ledger would speak of another place: change the configuration back, \
         or configure the new table under another name"
    )))
}

/// The preflight, after creating the table where it is missing. Says whether it was.
async fn ensure_table(
    destination: &Destination,
    outbox: &tokio_postgres::Client,
    options: &CreateOptions,
) -> Result<(bool, SinkReport), Failure> {
    let refusal = match destination.prepare(outbox).await {
        Ok(plan) => return Ok((false, plan.report().clone())),
        Err(failure) if failure.exit() != Exit::Refused => return Err(failure),
        Err(failure) => failure,
    };
    match destination.sink.create(options).await {
        Ok(_) => {
            let plan = destination.prepare(outbox).await?;
            Ok((true, plan.report().clone()))
        }
        // It is there, and what the preflight said about it counts.
        Err(trouble) if trouble.code == Some(TABLE_ALREADY_EXISTS) => Err(refusal),
        Err(trouble) => Err(destination.blame(trouble)),
    }
}

/// Check that a sink can keep its guarantee
#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 3, and says what to do, when the relay would refuse the sink.

Examples:
  pillarbox sink check
  pillarbox sink check audit --json")]
struct Check {
    /// Sink as in the configuration [default: the only one, or clickhouse]
    name: Option<String>,
}

impl Check {
    async fn run(self, place: &Place) -> Outcome {
        let destination = Destination::find(&place.config()?, self.name.as_deref())?;
        let session = place.session().await?;
        let client = session.client();
        schema::check_version(client).await?;
        let plan = destination.prepare(client).await?;
        let report = plan.report();
        let name = &destination.name;
        let known = registry::list(client).await?;
        let known = known.into_iter().find(|sink| sink.name == *name);
        if let Some(known) = &known {
            check_fingerprint(
                &destination.name,
                &destination.fingerprint(),
                &known.fingerprint,
            )?;
        }
        if place.json {
            output::json(&json!({
                "sink": name,
                "registered": known.is_some(),
                "report": report,
            }))?;
            return Ok(Exit::Done);
        }
        show(name, report)?;
        match known {
            Some(_) => output::next("deliver: pillarbox relay"),
            None => output::next(&format!("register it: pillarbox sink create {name}")),
        }
        Ok(Exit::Done)
    }
}

fn show(name: &str, report: &SinkReport) -> Result<(), Failure> {
    let window = match (report.window.blocks, report.window.seconds) {
        (0, _) => "none".to_owned(),
        (blocks, None) => format!("{blocks} blocks"),
        (blocks, Some(seconds)) => {
            format!("{blocks} blocks, {}", output::duration(seconds as f64))
        }
    };
    let or_none = |text: &str| match text {
        "" => "none".to_owned(),
        text => text.to_owned(),
    };
    let mut facts = output::table(&[]);
    for (label, value) in [
        ("sink", name.to_owned()),
        ("table", report.table.clone()),
        ("server", format!("clickhouse {}", report.version)),
        ("engine", report.engine.clone()),
        (
            "guarantee",
            format!("{}: {}", report.guarantee, report.guarantee_reason),
        ),
        ("window", window),
        ("partition by", or_none(&report.partition)),
        ("order by", or_none(&report.sorting_key)),
        ("views", or_none(&report.views.join(", "))),
    ] {
        facts.add_row([label.to_owned(), value]);
    }
    output::show(&facts)?;
    output::line("")?;
    let mut columns = output::table(&["column", "outbox", "sink", "proven"]);
    for column in &report.columns {
        let proven = if column.proven { "yes" } else { "no" };
        columns.add_row([&column.name, &column.outbox_type, &column.sink_type, proven]);
    }
    output::show(&columns)?;
    for warning in &report.warnings {
        output::line(format!("warning: {warning}"))?;
    }
    Ok(())
}

/// Stop keeping events for a sink
#[derive(Debug, Args)]
#[command(after_help = "\
The sink's relay stops, and the outbox keeps no events for it any more: what it has not received is
never delivered to it. The table and what is in it stay. The name cannot be used again.

Examples:
  pillarbox sink retire audit            says how many events it would miss
  pillarbox sink retire audit --yes")]
struct Retire {
    /// Registered sink
    name: String,

    /// Do it
    #[arg(long)]
    yes: bool,
}

impl Retire {
    async fn run(self, place: &Place) -> Outcome {
        let session = place.session().await?;
        let client = session.client();
        schema::check_version(client).await?;
        let name = &self.name;
        registry::find(client, name).await?;
        let backlogs = backlog::of_sinks(client).await?;
        let events = backlogs.iter().find(|backlog| backlog.sink == *name);
        let events = events.map_or(0, |backlog| backlog.events);
        if !self.yes {
            return Err(Failure::usage(format!(
                "retiring the sink {name} is final: {} not delivered yet, none of which would reach \
                 it; its relay stops, and its name cannot be used again; to do it, add --yes",
                counted(events)
            )));
        }
        registry::retire(client, name).await?;
        if place.json {
            output::json(&json!({ "sink": name, "retired": true, "events_undelivered": events }))?;
            return Ok(Exit::Done);
        }
        output::line(format!(
            "retired the sink {name}; {} will not reach it",
            counted(events)
        ))?;
        output::next(&format!("remove [sinks.{name}] from the configuration"));
        Ok(Exit::Done)
    }
}
