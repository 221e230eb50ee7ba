//! Who holds the horizon of the cluster, and transactions that are open for long. Pillarbox is not slowed
//! down by them; other tables bloat, and events of a long transaction arrive when it ends.

use super::finding::{Findings, Remedy};
use super::{Subject, age};
use crate::exit::Failure;

pub(super) async fn examine(subject: &Subject<'_>) -> Result<Findings, Failure> {
    const HORIZON: &str = include_str!("sql/horizon.sql");
    let mut findings = Findings::of("horizon");
    let patience = subject.older_than.as_secs_f64();
    let rows = subject.client.query(HORIZON, &[&patience]).await?;
    for row in &rows {
        let holder = Holder {
            kind: row.get(0),
            name: row.get(1),
            about: row.get(2),
            pid: row.get(3),
            age_s: row.get(4),
            xids: row.get(5),
            is_writing: row.get(6),
            is_in_use: row.get(7),
        };
        holder.name(&mut findings);
    }
    let fine = format!(
        "no transaction, slot or standby has held it for {}",
        age(patience)
    );
    findings.fine_unless_found("held", fine);
    if !sees_others(subject).await? {
        findings.skipped(
            "held",
            "the sessions of other users cannot be seen; grant pg_read_all_stats to this user to \
             have them looked at",
        );
    }
    Ok(findings)
}

async fn sees_others(subject: &Subject<'_>) -> Result<bool, Failure> {
    const SEES: &str = "select pg_catalog.pg_has_role('pg_read_all_stats', 'usage')";
    Ok(subject.client.query_one(SEES, &[]).await?.get(0))
}

/// A backend, prepared transaction, slot or standby.
struct Holder {
    kind: String,
    name: String,
    /// Where it belongs to, without any text of a query.
    about: String,
    pid: Option<i32>,
    age_s: Option<f64>,
    xids: Option<i64>,
    is_writing: bool,
    is_in_use: bool,
}

impl Holder {
    fn name(&self, findings: &mut Findings) {
        let (name, about) = (&self.name, &self.about);
        let since = self
            .age_s
            .map_or_else(|| format!("{} transactions", self.xids.unwrap_or(0)), age);
        match self.kind.as_str() {
            "backend" => {
                let pid = self.pid.unwrap_or(0);
                let what = match self.is_writing {
                    true => "has been writing",
                    false => "has had a transaction open",
                };
                findings.warning(
                    "held",
                    format!("{name} (pid {pid}, {about}) {what} for {since}"),
                    Remedy::psql(format!("select pg_catalog.pg_terminate_backend({pid});")),
                );
            }
            "prepared" => findings.warning(
                "held",
                format!("the transaction {name} ({about}) has been prepared for {since}; its events \
                         arrive when somebody commits it"),
                Remedy::psql(format!("rollback prepared {name}; -- or: commit prepared {name};")),
            ),
            "slot" if self.is_in_use => findings.warning(
                "held",
                format!("the replication slot {name} ({about}) holds it, {since} back"),
                Remedy::person(format!("see why what reads the slot {name} is behind")),
            ),
            "slot" => findings.warning(
                "held",
                format!("the replication slot {name} ({about}), which nobody reads, holds it, {since} back"),
                Remedy::psql(format!("select pg_catalog.pg_drop_replication_slot({name});")),
            ),
            _ => findings.warning(
                "held",
                format!("a query on the standby {name} ({about}) holds it by hot_standby_feedback, \
                         {since} back"),
                Remedy::person(format!("end the long query on the standby {name}")),
            ),
        }
    }
}
