//! Free space where PostgreSQL is: a full disk is what makes publishing fail.

use std::path::Path;

use tokio_postgres::config::Host;

use super::finding::{Findings, Remedy};
use super::{Subject, age};
use crate::exit::Failure;
use crate::output;

/// How long the outbox must be able to grow as in the last hour.
const GROWTH_S: f64 = 24.0 * 3600.0;

pub(super) async fn examine(subject: &Subject<'_>) -> Result<Findings, Failure> {
    const OUTBOX: &str = include_str!("sql/outbox_size.sql");
    let mut findings = Findings::of("disk");
    let row = subject.client.query_one(OUTBOX, &[]).await?;
    let (bytes, hourly): (i64, i64) = (row.get(0), row.get(1));
    let taken = format!(
        "the outbox takes {}, {} were sealed in the last hour",
        output::size(bytes),
        output::size(hourly)
    );
    if !is_here(subject.target) {
        findings.skipped(
            "free",
            format!("{taken}; postgresql's disk is on another machine"),
        );
        return Ok(findings);
    }
    const DIRECTORY: &str = "select pg_catalog.current_setting('data_directory')";
    let directory: String = match subject.client.query_one(DIRECTORY, &[]).await {
        Ok(row) => row.get(0),
        Err(_) => {
            let message = format!(
                "{taken}; this user may not see where its disk is: grant pg_read_all_settings to it"
            );
            findings.skipped("free", message);
            return Ok(findings);
        }
    };
    // The write-ahead log is often on a disk of its own.
    for place in [Path::new(&directory), &Path::new(&directory).join("pg_wal")] {
        let Ok(space) = rustix::fs::statvfs(place) else {
            findings.skipped(
                "free",
                format!("{taken}; {} is not to be seen", place.display()),
            );
            return Ok(findings);
        };
        let space = Space {
            free: space.f_bavail.saturating_mul(space.f_frsize),
            total: space.f_blocks.saturating_mul(space.f_frsize),
        };
        space.judge(
            &mut findings,
            &place.display().to_string(),
            hourly.unsigned_abs(),
        );
    }
    findings.ok("outbox", taken);
    Ok(findings)
}

/// Whether the server runs on this machine.
fn is_here(target: &tokio_postgres::Config) -> bool {
    target.get_hosts().iter().all(|host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost"
                || name
                    .parse::<std::net::IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        }
    })
}

/// A file system.
#[derive(Clone, Copy)]
pub(super) struct Space {
    pub(super) free: u64,
    pub(super) total: u64,
}

impl Space {
    /// Names what is nearly full, or will be within a day if it goes on like the last hour.
    pub(super) fn judge(self, findings: &mut Findings, place: &str, hourly: u64) {
        let Self { free, total } = self;
        let shown = |bytes: u64| output::size(i64::try_from(bytes).unwrap_or(i64::MAX));
        let message = format!("{} of {} are free at {place}", shown(free), shown(total));
        let lasts_s = match hourly {
            0 => f64::INFINITY,
            hourly => free as f64 / hourly as f64 * 3600.0,
        };
        let remedy = Remedy::person(format!("make space at {place}"));
        if free < total / 50 {
            findings.problem("free", message, remedy);
        } else if lasts_s < GROWTH_S {
            let message = format!("{message}, enough for {} of such traffic", age(lasts_s));
            findings.warning("free", message, remedy);
        } else if free < total / 10 {
            findings.warning("free", message, remedy);
        } else {
            findings.ok("free", message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn what_is_full_and_what_will_be() {
        let level = |free, total, hourly| {
            let mut findings = Findings::of("disk");
            Space { free, total }.judge(&mut findings, "here", hourly);
            findings.list[0].level
        };
        assert_eq!(level(1_000, 2_000, 0), Level::Ok);
        assert_eq!(level(1_000, 2_000, 41), Level::Ok);
        assert_eq!(level(1_000, 2_000, 42), Level::Warning);
        assert_eq!(level(100, 2_000, 0), Level::Warning);
        assert_eq!(level(39, 2_000, 0), Level::Problem);
    }
}
