//! `pillarbox dead-letters`: the events that a sink could not take, and the entries of intakes that are
//! no events.

use clap::{Args, Subcommand};
use pillarbox_relay::schema;
use serde_json::json;
use tokio_postgres::{Client, Row};

use crate::exit::{Exit, Failure, Outcome};
use crate::output::plural;
use crate::{Place, output, registered};

mod entry;

/// See, retry and drop the events that a sink could not take, and the entries of intakes that are no events
#[derive(Debug, Args)]
#[command(after_help = "\
An event is set aside when the sink refuses it by itself: a value that does not fit, a constraint. It is
kept here untouched, with the reason, and no longer counts for the outbox. An entry of an intake or of an import is
set aside when it is no event; a retry publishes it if it has become one since, by a larger limit for example.

Examples:
  pillarbox dead-letters list
  pillarbox dead-letters show 17
  pillarbox dead-letters retry --all             after the table was mended
  pillarbox dead-letters retry --all --intake logins
  pillarbox dead-letters drop 17 18 --reason 'test data'")]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List dead letters, newest first
    List(List),
    /// Show one dead letter with its context
    Show(Show),
    /// Have dead letters delivered again, each once
    Retry(Choice),
    /// Give dead letters up; they stay on record with the reason
    Drop(Drop),
}

#[derive(Debug, Args)]
struct List {
    /// Registered sink [default: the only one, and all intakes]
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,

    /// Intake or import
    #[arg(long, value_name = "NAME", conflicts_with = "sink")]
    intake: Option<String>,

    /// Also those that were delivered or dropped since
    #[arg(long)]
    all: bool,

    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
}

#[derive(Debug, Args)]
struct Show {
    /// Number of the dead letter
    number: i64,
}

#[derive(Debug, Args)]
struct Choice {
    /// Numbers of dead letters
    #[arg(required_unless_present = "all")]
    numbers: Vec<i64>,

    /// All that are dead, of the sink or of the intake
    #[arg(long, conflicts_with = "numbers")]
    all: bool,

    /// Intake or import
    #[arg(long, value_name = "NAME", conflicts_with = "sink")]
    intake: Option<String>,

    /// Registered sink [default: the only one]
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
}

#[derive(Debug, Args)]
struct Drop {
    #[command(flatten)]
    choice: Choice,

    /// Why; kept on record
    #[arg(long)]
    reason: String,
}

impl DeadLetters {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        let mut session = place.session().await?;
        schema::check_version(session.client()).await?;
        let client = session.client_mut();
        match self.action {
            Action::List(list) => list.run(place, client).await,
            Action::Show(show) => show.run(place, client).await,
            Action::Retry(choice) => choice.retry(place, client).await,
            Action::Drop(drop) => drop.run(place, client).await,
        }
    }
}

impl List {
    async fn run(self, place: &Place, client: &Client) -> Outcome {
        const LIST: &str = include_str!("sql/dead_letters.sql");
        let limit = i64::from(self.limit);
        let entries = match &self.sink {
            None => entry::list(client, self.intake.as_deref(), self.all, limit).await?,
            Some(_) => Vec::new(),
        };
        let sink = match (
            &self.intake,
            registered::find(client, self.sink.as_deref()).await,
        ) {
            (Some(_), _) => None,
            // Without a sink there may be intakes.
            (None, Err(_)) if !entries.is_empty() => None,
            (None, found) => Some(found?),
        };
        let rows = match &sink {
            Some(sink) => client.query(LIST, &[&sink.sink, &self.all, &limit]).await?,
            None => Vec::new(),
        };
        if place.json {
            let letters = rows.iter().map(as_json);
            let letters: Vec<_> = letters.chain(entries.iter().map(entry::as_json)).collect();
            output::json(&letters)?;
            return Ok(Exit::Done);
        }
        match (sink, self.intake) {
            (_, Some(intake)) if entries.is_empty() => {
                output::line(format!("the intake {intake} has no dead letters"))?;
            }
            (Some(sink), _) if rows.is_empty() => {
                output::line(format!("the sink {} has no dead letters", sink.name))?;
            }
            (Some(_), _) => show_table(&rows)?,
            (None, _) => {}
        }
        if !entries.is_empty() {
            if !rows.is_empty() {
                output::line("")?;
            }
            entry::table(&entries)?;
        }
        if rows.len() + entries.len() > 0 {
            output::next("mend the cause, then: pillarbox dead-letters retry --all");
        }
        Ok(Exit::Done)
    }
}

fn show_table(rows: &[Row]) -> Result<(), Failure> {
    let head = [
        "number",
        "state",
        "batch",
        "event_type",
        "code",
        "column",
        "reason",
    ];
    let mut table = output::table(&head);
    for row in rows {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.add_row([
            row.get::<_, i64>("dead_letter").to_string(),
            row.get("state"),
            row.get::<_, i64>("number").to_string(),
            row.get("event_type"),
            or_dash(
                row.get::<_, Option<i32>>("code")
                    .map(|code| code.to_string()),
            ),
            or_dash(row.get("column_name")),
            row.get("reason"),
        ]);
    }
    output::show(&table)
}

impl Show {
    async fn run(self, place: &Place, client: &Client) -> Outcome {
        const SHOW: &str = include_str!("sql/dead_letter.sql");
        let letter = match client.query_opt(SHOW, &[&self.number]).await? {
            Some(row) => {
                let mut letter = as_json(&row);
                letter["event_context"] = row.get::<_, String>("event_context").into();
                letter["more"] = serde_json::from_str(row.get("more"))?;
                letter["decided_by"] = row.get::<_, Option<String>>("decided_by").into();
                letter["decided_reason"] = row.get::<_, Option<String>>("decided_reason").into();
                letter
            }
            None => {
                let entry = entry::show(client, self.number).await?;
                entry.ok_or_else(|| none(self.number))?
            }
        };
        if place.json {
            output::json(&letter)?;
            return Ok(Exit::Done);
        }
        if let Some(fields) = letter.as_object() {
            for (name, value) in fields {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                output::line(format!("{name:<16} {}", entry::shortened(&text)))?;
            }
        }
        Ok(Exit::Done)
    }
}

impl Choice {
    async fn retry(mut self, place: &Place, client: &mut Client) -> Outcome {
        const RETRY: &str = include_str!("sql/dead_letters_retry.sql");
        let numbers = (!self.all).then_some(self.numbers.as_slice());
        if self.sink.is_none() && (self.intake.is_some() || numbers.is_some()) {
            let tried = entry::retry(client, self.intake.as_deref(), numbers).await?;
            let of_intakes = tried.published + tried.dead;
            if of_intakes > 0 || self.intake.is_some() {
                show_tried(place, &tried)?;
            }
            // What is left are numbers of letters of a sink.
            self.numbers = tried.unknown;
            let is_done = self.numbers.is_empty() && (of_intakes > 0 || self.intake.is_some());
            if is_done {
                return Ok(if tried.dead > 0 {
                    Exit::Refused
                } else {
                    Exit::Done
                });
            }
            if self.intake.is_some() {
                return Err(none(self.numbers.first().copied().unwrap_or(0)));
            }
        }
        let sink = registered::find(client, self.sink.as_deref()).await?;
        let given: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
            &[&sink.sink, &self.all, &self.numbers];
        let changed = client.execute(RETRY, given).await?;
        self.check(changed)?;
        if place.json {
            output::json(&json!({ "sink": sink.name, "requested": changed }))?;
            return Ok(Exit::Done);
        }
        output::line(format!(
            "{} will be retried",
            plural(changed, "dead letter")
        ))?;
        output::next("the relay delivers them; see: pillarbox dead-letters list --all");
        Ok(Exit::Done)
    }

    /// Drops those that are of intakes; tells whether all are.
    async fn drop_entries(
        &mut self,
        place: &Place,
        client: &Client,
        reason: &str,
    ) -> Result<bool, Failure> {
        let numbers = (!self.all).then_some(self.numbers.as_slice());
        if self.sink.is_some() || (self.intake.is_none() && numbers.is_none()) {
            return Ok(false);
        }
        let dropped = entry::drop(client, self.intake.as_deref(), numbers, reason).await?;
        self.numbers.retain(|number| !dropped.contains(number));
        let count = dropped.len() as u64;
        if count > 0 || self.intake.is_some() {
            match place.json {
                true => output::json(&json!({ "entries_dropped": count }))?,
                false => output::line(format!(
                    "dropped {} of intakes",
                    plural(count, "dead letter")
                ))?,
            }
        }
        match (&self.intake, self.numbers.first()) {
            (Some(_), Some(number)) => Err(none(*number)),
            (Some(_), None) => Ok(true),
            (None, left) => Ok(left.is_none() && count > 0),
        }
    }

    /// Whether every number that was given was that of a dead letter.
    fn check(&self, changed: u64) -> Result<(), Failure> {
        let wanted = self.numbers.len() as u64;
        if self.all || changed == wanted {
            return Ok(());
        }
        Err(Failure::refused(format!(
            "only {changed} of {wanted} are dead letters of this sink that nobody has decided about yet; \
             see: pillarbox dead-letters list --all"
        )))
    }
}

impl Drop {
    async fn run(self, place: &Place, client: &Client) -> Outcome {
        const DROP: &str = include_str!("sql/dead_letters_drop.sql");
        let reason = self.reason.trim();
        if reason.is_empty() {
            return Err(Failure::usage(
                "give a reason: it is all that remains of the decision",
            ));
        }
        let mut choice = self.choice;
        if choice.drop_entries(place, client, reason).await? {
            return Ok(Exit::Done);
        }
        let Choice {
            numbers, all, sink, ..
        } = &choice;
        let sink = registered::find(client, sink.as_deref()).await?;
        let given: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
            &[&sink.sink, all, numbers, &reason];
        let changed = client.execute(DROP, given).await?;
        choice.check(changed)?;
        if place.json {
            output::json(&json!({ "sink": sink.name, "dropped": changed }))?;
            return Ok(Exit::Done);
        }
        output::line(format!("dropped {}", plural(changed, "dead letter")))?;
        Ok(Exit::Done)
    }
}

fn show_tried(place: &Place, tried: &entry::Tried) -> Result<(), Failure> {
    let (published, dead) = (tried.published, tried.dead);
    if place.json {
        return output::json(&json!({ "published": published, "still_dead": dead }));
    }
    output::line(format!("published {}", plural(published, "event")))?;
    if dead > 0 {
        output::line(format!("still no events: {dead}"))?;
        output::next("see why: pillarbox dead-letters list");
    }
    Ok(())
}

fn none(number: i64) -> Failure {
    Failure::refused(format!(
        "there is no dead letter {number}; see: pillarbox dead-letters list --all"
    ))
}

fn as_json(row: &Row) -> serde_json::Value {
    json!({
        "number": row.get::<_, i64>("dead_letter"),
        "state": row.get::<_, String>("state"),
        "batch": row.get::<_, i64>("number"),
        "event_id": row.get::<_, uuid::Uuid>("event_id").to_string(),
        "event_type": row.get::<_, String>("event_type"),
        "event_date_time": row.get::<_, String>("event_date_time"),
        "dead_at": row.get::<_, String>("dead_at"),
        "code": row.get::<_, Option<i32>>("code"),
        "column": row.get::<_, Option<String>>("column_name"),
        "reason": row.get::<_, String>("reason"),
    })
}
