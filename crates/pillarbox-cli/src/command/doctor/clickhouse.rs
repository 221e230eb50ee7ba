//! Each configured sink: the preflight that a relay makes, and what the server says of itself.

use std::time::{Duration, SystemTime};

use pillarbox_relay::config::Config;
use pillarbox_relay::sink::clickhouse::{Health, Parts, Replica};
use tokio_postgres::Client;

use super::disk::Space;
use super::finding::{Finding, Findings, Remedy};
use super::{age, clock};
use crate::destination::Destination;
use crate::exit::Failure;
use crate::output;

/// A replica this far behind is named.
const DELAY_MAX: Duration = Duration::from_secs(300);

/// What an insert needs beside the rows: the block, sorted, and what is written of it.
const MEMORY_FACTOR: u64 = 4;

/// Looks at every configured sink; without an outbox, only at its server.
pub(super) async fn examine(config: &Config, outbox: Option<&Client>) -> Vec<Finding> {
    let mut found = Vec::new();
    for name in config.sinks.keys() {
        let mut findings = Findings::of("clickhouse");
        match Destination::find(config, Some(name)) {
            Err(failure) => findings.failed("configured", &failure, None),
            Ok(destination) => look(config, &destination, outbox, &mut findings).await,
        }
        found.extend(findings.list);
    }
    if config.sinks.is_empty() {
        let mut findings = Findings::of("clickhouse");
        let message = "no sink is configured here; set CLICKHOUSE_URL, or add [sinks.clickhouse]";
        findings.skipped("configured", message);
        found.extend(findings.list);
    }
    found
}

async fn look(
    config: &Config,
    destination: &Destination,
    outbox: Option<&Client>,
    findings: &mut Findings,
) {
    let asked = SystemTime::now();
    let health = match destination.sink.health().await {
        Ok(health) => health,
        Err(trouble) => {
            findings.failed("server", &destination.blame(trouble), None);
            return;
        }
    };
    let answered = SystemTime::now();
    let name = &destination.name;
    let Health { version, zone, .. } = &health;
    findings.ok(
        "server",
        format!("{name}: clickhouse {version}, time zone {zone}"),
    );
    let grain = Duration::from_secs(1);
    let skew = clock::skew(asked, answered, health.now, grain);
    clock::judge(findings, &format!("{name}'s server"), skew);
    memory(&health, config.relay.max_bytes.0, destination, findings);
    for disk in health.disks.as_deref().unwrap_or_default() {
        // What is not on a disk has no size.
        if disk.total > 0 {
            let place = format!("the disk {} of {name}", disk.name);
            let space = Space {
                free: disk.free,
                total: disk.total,
            };
            space.judge(findings, &place, 0);
        }
    }
    if let Some(parts) = health.parts {
        judge_parts(parts, &quoted_table(destination), findings);
    }
    if let Some(replica) = health.replica {
        judge_replica(replica, &quoted_table(destination), findings);
    }
    if let Some(outbox) = outbox {
        preflight(destination, outbox, findings).await;
    }
}

async fn preflight(destination: &Destination, outbox: &Client, findings: &mut Findings) {
    let name = &destination.name;
    let plan = match destination.prepare(outbox).await {
        Ok(plan) => plan,
        Err(failure) => {
            let remedy = remedy_in(&failure, destination);
            findings.failed("preflight", &failure, remedy);
            return;
        }
    };
    let report = plan.report();
    findings.ok(
        "preflight",
        format!(
            "{name}: {}, guarantee {}: {}",
            report.table, report.guarantee, report.guarantee_reason
        ),
    );
    for warning in &report.warnings {
        let remedy = match statement_in(warning) {
            Some(statement) => Remedy::ClickHouse(statement.to_owned()),
            None => Remedy::shell(format!("pillarbox sink check {name}")),
        };
        findings.warning("preflight", format!("{name}: {warning}"), remedy);
    }
}

/// The statement that a refusal of the preflight names.
fn remedy_in(failure: &Failure, destination: &Destination) -> Option<Remedy> {
    let text = failure.text();
    if text.contains("pillarbox sink create") {
        let name = &destination.name;
        return Some(Remedy::shell(format!("pillarbox sink create {name}")));
    }
    let user = format!(" TO {}", backquoted(&destination.config.user));
    let statement = statement_in(&text)?;
    let statement = statement.replace(" TO it", &user);
    Some(Remedy::ClickHouse(
        statement.replace(" to the sink's user", &user),
    ))
}

/// The first statement among the clauses of a sentence.
fn statement_in(text: &str) -> Option<&str> {
    let starts = ["ALTER TABLE ", "GRANT "];
    let clauses = text.split("; ");
    clauses
        .map(|clause| clause.strip_prefix("run ").unwrap_or(clause))
        .find(|clause| starts.iter().any(|start| clause.starts_with(start)))
}

fn memory(health: &Health, bytes_max: u64, destination: &Destination, findings: &mut Findings) {
    let needed = bytes_max.saturating_mul(MEMORY_FACTOR);
    let Some(limit) = health.memory_max.filter(|limit| *limit > 0) else {
        return;
    };
    if limit >= needed {
        return;
    }
    let shown = |bytes: u64| output::size(i64::try_from(bytes).unwrap_or(i64::MAX));
    let name = &destination.name;
    findings.warning(
        "memory",
        format!(
            "{name}: one statement may use {} (max_memory_usage), a batch of relay.max_bytes needs \
             about {}",
            shown(limit),
            shown(needed)
        ),
        Remedy::person(format!(
            "give the user {} a max_memory_usage of {needed}, or set relay.max_bytes to {}",
            destination.config.user,
            limit / MEMORY_FACTOR
        )),
    );
}

fn judge_parts(parts: Parts, table: &str, findings: &mut Findings) {
    let Parts {
        most,
        delay_at,
        refuse_at,
    } = parts;
    let message = format!(
        "{table} has {most} parts in one partition; inserts are slowed down from {delay_at}, \
         refused from {refuse_at}"
    );
    let merge = Remedy::ClickHouse(format!("OPTIMIZE TABLE {table}"));
    // From four fifths on, the next minutes decide.
    if most >= refuse_at - refuse_at / 5 {
        findings.problem("parts", message, merge);
    } else if most >= delay_at {
        findings.warning("parts", message, merge);
    } else {
        findings.ok("parts", message);
    }
}

fn judge_replica(replica: Replica, table: &str, findings: &mut Findings) {
    if replica.is_readonly {
        findings.problem(
            "replica",
            format!("{table} is read-only: its replica has lost the keeper"),
            Remedy::ClickHouse(format!("SYSTEM RESTART REPLICA {table}")),
        );
    } else if replica.active < replica.total {
        findings.warning(
            "replica",
            format!(
                "{} of {} replicas of {table} are up",
                replica.active, replica.total
            ),
            Remedy::person("start the servers of the others, or drop their replicas"),
        );
    } else if replica.to_check > 0 {
        findings.warning(
            "replica",
            format!(
                "{} parts of {table} are still to be checked by its replica, and may not stay; an old \
                 server checks them when it is told",
                replica.to_check
            ),
            Remedy::ClickHouse(format!("SYSTEM RESTART REPLICA {table}")),
        );
    } else if replica.delay > DELAY_MAX {
        findings.warning(
            "replica",
            format!(
                "the replica of {table} is {} behind, with {} things to do",
                age(replica.delay.as_secs_f64()),
                replica.queue
            ),
            Remedy::ClickHouse(format!("SYSTEM SYNC REPLICA {table}")),
        );
    } else {
        findings.ok(
            "replica",
            format!("{} replicas of {table} are up", replica.total),
        );
    }
}

fn quoted_table(destination: &Destination) -> String {
    let config = &destination.config;
    format!(
        "{}.{}",
        backquoted(&config.database),
        backquoted(&config.table)
    )
}

fn backquoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn the_statement_of_a_refusal_is_found() {
        let refusal = "sink a: d.t cannot keep an insert from being written twice: the window is 0; \
                       run ALTER TABLE `d`.`t` MODIFY SETTING x = 1; or accept it";
        let wanted = "ALTER TABLE `d`.`t` MODIFY SETTING x = 1";
        assert_eq!(statement_in(refusal), Some(wanted));
        assert_eq!(
            statement_in("sink a: no; GRANT INSERT ON d.t TO it"),
            Some("GRANT INSERT ON d.t TO it")
        );
        assert_eq!(statement_in("sink a: the table is a view"), None);
    }

    #[test]
    fn parts_are_named_before_inserts_are_refused() {
        let level = |most| {
            let parts = Parts {
                most,
                delay_at: 150,
                refuse_at: 300,
            };
            let mut findings = Findings::of("clickhouse");
            judge_parts(parts, "t", &mut findings);
            findings.list[0].level
        };
        assert_eq!(
            [level(149), level(150), level(239), level(240)],
            [Level::Ok, Level::Warning, Level::Warning, Level::Problem]
        );
    }

    #[test]
    fn a_replica_that_is_not_sure_of_its_parts_is_named() {
        let sure = Replica {
            is_readonly: false,
            delay: Duration::ZERO,
            queue: 0,
            active: 2,
            total: 2,
            to_check: 0,
        };
        let judged = |replica| {
            let mut findings = Findings::of("clickhouse");
            judge_replica(replica, "t", &mut findings);
            findings.list.remove(0)
        };
        assert_eq!(judged(sure).level, Level::Ok);
        let found = judged(Replica {
            to_check: 1,
            ..sure
        });
        assert_eq!(found.level, Level::Warning);
        assert!(
            found.message.starts_with("1 parts of t"),
            "{}",
            found.message
        );
    }
}
