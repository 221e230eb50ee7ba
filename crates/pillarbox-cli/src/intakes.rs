//! The configured and the registered intakes, and what waits for them.

use std::collections::BTreeMap;
use std::time::Duration;

use pillarbox_relay::config::Config;
use pillarbox_relay::intake::{Intake, Waiting};
use pillarbox_relay::schema::INTAKE_LOCK_CLASS;
use serde::Serialize;
use tokio_postgres::{Client, Row};

use crate::exit::Failure;

/// Nobody waits longer than this for Redis: it is asked when something is wrong.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where an intake stands. Names and units are those of `pillarbox status --json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Standing {
    pub(crate) intake: String,
    pub(crate) kind: String,
    pub(crate) key: String,
    pub(crate) active: bool,
    /// Entries in Redis; `None` when it cannot be asked.
    pub(crate) waiting_entries: Option<u64>,
    /// Age of the oldest; a list does not know it.
    pub(crate) lag_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trouble: Option<String>,
    pub(crate) taken: i64,
    pub(crate) restored: i64,
    /// Dead letters that nobody has decided about.
    pub(crate) dead_letters: i64,
    pub(crate) taken_age_ms: Option<i64>,
    #[serde(skip)]
    pub(crate) is_configured: bool,
}

/// What Redis says of each configured intake.
pub(crate) type Answers = BTreeMap<String, Result<Waiting, String>>;

/// Asks for every configured intake at once.
pub(crate) async fn ask(config: &Config) -> Answers {
    let mut asking = Vec::new();
    for (name, intake) in &config.intake {
        let asked = async move {
            // It only looks at Redis.
            let nowhere = tokio_postgres::Config::new();
            let source = Intake::new(name, intake, nowhere).map_err(|error| error.to_string())?;
            match tokio::time::timeout(PATIENCE, source.waiting()).await {
                Ok(answer) => answer.map_err(|error| Failure::from(error).text()),
                Err(_) => Err(format!("redis did not answer within {PATIENCE:?}")),
            }
        };
        asking.push(async move { (name.clone(), asked.await) });
    }
    futures_util::future::join_all(asking)
        .await
        .into_iter()
        .collect()
}

/// Every intake that is configured or registered, by name.
pub(crate) async fn standing(
    client: &Client,
    config: Option<&Config>,
    answers: &Answers,
) -> Result<Vec<Standing>, Failure> {
    const INTAKES: &str = include_str!("command/sql/intakes.sql");
    let rows = client.query(INTAKES, &[&INTAKE_LOCK_CLASS]).await?;
    let mut found: Vec<Standing> = rows.iter().map(Standing::registered).collect();
    for (name, intake) in config.iter().flat_map(|config| &config.intake) {
        let known = found.iter_mut().find(|standing| standing.intake == *name);
        match known {
            Some(known) => known.is_configured = true,
            None => found.push(Standing::configured(name, intake)),
        }
    }
    found.sort_by(|a, b| a.intake.cmp(&b.intake));
    for standing in &mut found {
        match answers.get(&standing.intake) {
            Some(Ok(waiting)) => {
                standing.waiting_entries = Some(waiting.entries);
                standing.lag_ms = match waiting.entries {
                    0 => Some(0),
                    _ => waiting
                        .age
                        .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                };
            }
            Some(Err(trouble)) => standing.trouble = Some(trouble.clone()),
            None => {}
        }
    }
    Ok(found)
}

impl Standing {
    fn registered(row: &Row) -> Self {
        let seconds: Option<f64> = row.get("taken_s");
        Self {
            intake: row.get("name"),
            kind: row.get("kind"),
            key: row.get("source"),
            active: row.get("is_active"),
            waiting_entries: None,
            lag_ms: None,
            trouble: None,
            taken: row.get("taken"),
            restored: row.get("restored"),
            dead_letters: row.get("letters"),
            taken_age_ms: seconds.map(|seconds| (seconds * 1000.0).max(0.0) as i64),
            is_configured: false,
        }
    }

    fn configured(name: &str, intake: &pillarbox_relay::config::Intake) -> Self {
        Self {
            intake: name.to_owned(),
            kind: intake.kind.map_or("", |kind| kind.as_str()).to_owned(),
            key: intake.key.clone(),
            active: false,
            waiting_entries: None,
            lag_ms: None,
            trouble: None,
            taken: 0,
            restored: 0,
            dead_letters: 0,
            taken_age_ms: None,
            is_configured: true,
        }
    }

    /// In a word.
    pub(crate) fn state(&self) -> &'static str {
        match (self.active, self.is_configured) {
            (true, _) => "running",
            (false, true) => "no intake",
            (false, false) => "not configured",
        }
    }
}
