//! The intakes: Redis reached, a process at work, nothing left lying.

use super::Subject;
use super::finding::{Findings, Remedy};
use crate::exit::Failure;
use crate::intakes::{self, Standing};
use crate::output::{self, plural};

/// Entries that wait for longer than this are late, where a process takes them.
const LATE_MS: u64 = 60_000;

pub(super) async fn examine(subject: &Subject<'_>) -> Result<Findings, Failure> {
    let mut findings = Findings::of("intakes");
    if !subject.config.intake.is_empty() {
        rights(subject, &mut findings).await?;
    }
    let answers = intakes::ask(subject.config).await;
    let standing = intakes::standing(subject.client, Some(subject.config), &answers).await?;
    for intake in &standing {
        one(intake, &mut findings);
    }
    Ok(findings)
}

/// An intake publishes, which a relay does not.
async fn rights(subject: &Subject<'_>, findings: &mut Findings) -> Result<(), Failure> {
    const MAY_PUBLISH: &str = include_str!("sql/may_publish.sql");
    const USER: &str = "select pg_catalog.quote_ident(session_user)";
    if subject.client.query_one(MAY_PUBLISH, &[]).await?.get(0) {
        findings.ok("rights", "this user may take events over");
        return Ok(());
    }
    let user: String = subject.client.query_one(USER, &[]).await?.get(0);
    findings.problem(
        "rights",
        format!("{user} may not publish what an intake takes over"),
        Remedy::psql(format!(
            "grant pillarbox_publisher, pillarbox_relay to {user};"
        )),
    );
    Ok(())
}

fn one(intake: &Standing, findings: &mut Findings) {
    let name = &intake.intake;
    if let Some(trouble) = &intake.trouble {
        findings.problem(
            "redis",
            format!("the intake {name} cannot ask redis: {trouble}"),
            Remedy::person("mend what the message names, or the url of the intake"),
        );
    } else if intake.is_configured {
        findings.ok(
            "redis",
            format!(
                "the intake {name} reaches the {} {}",
                intake.kind, intake.key
            ),
        );
    }
    let waiting = intake.waiting_entries.unwrap_or(0);
    if !intake.active && intake.is_configured && waiting > 0 {
        findings.warning(
            "active",
            format!("no process takes the {waiting} entries of the intake {name} that wait"),
            Remedy::shell(format!("pillarbox intake {name}")),
        );
    }
    if intake.active && intake.lag_ms.is_some_and(|lag| lag > LATE_MS) {
        let lag = output::duration(intake.lag_ms.unwrap_or(0) as f64 / 1000.0);
        findings.warning(
            "lag",
            format!("the oldest of {waiting} entries of the intake {name} waits for {lag}"),
            Remedy::person("see the log of the intake"),
        );
    }
    if intake.dead_letters > 0 {
        let letters = plural(intake.dead_letters.unsigned_abs(), "dead letter");
        findings.warning(
            "dead_letters",
            format!("the intake {name} has {letters} that nobody has decided about"),
            Remedy::shell(format!("pillarbox dead-letters list --intake {name}")),
        );
    }
}
