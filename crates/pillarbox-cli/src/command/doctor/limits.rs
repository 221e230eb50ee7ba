//! Settings and limits of the server that decide whether what was sealed is safe, and whether a relay
//! gets its sessions. What a DBA limits for applications is overridden in every session of ours.

use std::collections::BTreeMap;

use super::Subject;
use super::finding::{Findings, Remedy};
use crate::exit::Failure;

/// Sessions of a relay for each sink: one with the lock, one to read, one for the ring.
const SESSIONS_PER_SINK: i64 = 3;

/// What a stand-by and a look by hand need beside.
const SESSIONS_BESIDE: i64 = 4;

pub(super) async fn examine(subject: &Subject<'_>) -> Result<Findings, Failure> {
    const SETTINGS: &str = include_str!("sql/settings.sql");
    let mut findings = Findings::of("limits");
    let rows = subject.client.query(SETTINGS, &[]).await?;
    let settings: BTreeMap<String, String> =
        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    durability(&settings, &mut findings);
    overridden(&settings, &mut findings);
    standbys(subject, &settings, &mut findings).await?;
    connections(subject, &mut findings).await?;
    Ok(findings)
}

fn durability(settings: &BTreeMap<String, String>, findings: &mut Findings) {
    for (name, what) in [
        (
            "fsync",
            "a crash of the machine can lose what was sealed, and damage the database",
        ),
        (
            "full_page_writes",
            "a crash of the machine can damage the database",
        ),
    ] {
        if settings.get(name).is_some_and(|value| value == "off") {
            findings.warning(
                "durability",
                format!("{name} is off: {what}"),
                Remedy::psql(format!(
                    "alter system set {name} = on; select pg_catalog.pg_reload_conf();"
                )),
            );
        }
    }
    findings.fine_unless_found("durability", "what is committed survives a crash");
}

/// Says what a role or database sets that relays do not follow.
fn overridden(settings: &BTreeMap<String, String>, findings: &mut Findings) {
    let harmless = [
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("transaction_timeout", "0"),
        ("default_transaction_isolation", "read committed"),
        ("default_transaction_read_only", "off"),
        ("synchronous_commit", "on"),
    ];
    let set = harmless.iter().filter_map(|(name, usual)| {
        let value = settings.get(*name)?;
        (value != usual).then(|| format!("{name} = {value}"))
    });
    let set: Vec<String> = set.collect();
    findings.ok(
        "sessions",
        match set.is_empty() {
            true => "nothing limits the sessions of a relay".to_owned(),
            false => format!(
                "set for this user, and overridden by relays: {}",
                set.join(", ")
            ),
        },
    );
}

async fn standbys(
    subject: &Subject<'_>,
    settings: &BTreeMap<String, String>,
    findings: &mut Findings,
) -> Result<(), Failure> {
    const SYNCHRONOUS: &str = "
        select pg_catalog.count(*) from pg_catalog.pg_stat_replication r
        where r.sync_state in ('sync', 'quorum')";
    let names = settings.get("synchronous_standby_names");
    if names.is_none_or(String::is_empty) {
        return Ok(());
    }
    let there: i64 = subject.client.query_one(SYNCHRONOUS, &[]).await?.get(0);
    if there == 0 {
        findings.problem(
            "standby",
            "no synchronous standby is connected: every commit waits for one",
            Remedy::psql(
                "alter system set synchronous_standby_names = ''; \
                 select pg_catalog.pg_reload_conf();",
            ),
        );
    } else {
        findings.ok("standby", "a synchronous standby is connected");
    }
    Ok(())
}

async fn connections(subject: &Subject<'_>, findings: &mut Findings) -> Result<(), Failure> {
    const CONNECTIONS: &str = include_str!("sql/connections.sql");
    let sinks = i64::try_from(subject.config.sinks.len()).unwrap_or(i64::MAX);
    let needed = sinks.max(1) * SESSIONS_PER_SINK + SESSIONS_BESIDE;
    for row in subject.client.query(CONNECTIONS, &[]).await? {
        let (what, remedy): (String, Option<String>) = (row.get(0), row.get(1));
        let (used, limit): (i64, i64) = (row.get(2), row.get(3));
        let free = limit - used;
        let remedy = remedy.map_or_else(
            || {
                Remedy::psql(format!(
                    "alter system set max_connections = {}; -- then restart postgresql",
                    limit + needed.max(limit)
                ))
            },
            Remedy::Psql,
        );
        let message = format!("{used} of {limit} sessions of {what} are taken");
        if limit < needed {
            let message = format!("{what} may have {limit} sessions, relays need {needed}");
            findings.problem("connections", message, remedy);
        } else if free < needed {
            let message = format!("{message}, and relays need {needed}");
            findings.warning("connections", message, remedy);
        } else {
            findings.ok("connections", message);
        }
    }
    Ok(())
}
