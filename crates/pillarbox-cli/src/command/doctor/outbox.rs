//! The outbox as `migrate` made it: its leaves and their indexes, and nothing that anybody added.

use super::Subject;
use super::finding::{Findings, Remedy};
use crate::exit::Failure;

pub(super) async fn examine(subject: &Subject<'_>) -> Result<Findings, Failure> {
    let mut findings = Findings::of("outbox");
    leaves(subject, &mut findings).await?;
    publications(subject, &mut findings).await?;
    additions(subject, &mut findings).await?;
    Ok(findings)
}

/// A leaf, or the table above the leaves.
struct Leaf {
    slot: i32,
    is_there: bool,
    is_attached: bool,
    has_key: bool,
    vacuums: bool,
    is_unlogged: bool,
}

impl Leaf {
    fn name(&self) -> String {
        format!("pillarbox.event_{}", self.slot)
    }

    fn judge(&self, findings: &mut Findings) {
        let (name, slot) = (self.name(), self.slot);
        if !self.is_there {
            findings.problem(
                "leaves",
                format!("the leaf {name} is gone, with what was in it"),
                Remedy::person(format!(
                    "restore the database, or make the leaf again as `pillarbox migrate --print` \
                     does for slot {slot}"
                )),
            );
            return;
        }
        if !self.is_attached {
            let attach = format!(
                "alter table pillarbox.event attach partition {name} for values in ({slot});"
            );
            let message = format!("{name} is not a leaf of the outbox: its events are not read");
            findings.problem("leaves", message, Remedy::Psql(attach));
        }
        if !self.has_key {
            findings.problem(
                "key",
                format!("{name} has no valid unique index on (tx, id): a doubled key breaks cuts"),
                Remedy::psql(format!(
                    "drop index if exists {name}_tx_id; \
                     create unique index event_{slot}_tx_id on {name} (tx, id);"
                )),
            );
        }
        if self.vacuums {
            findings.warning(
                "autovacuum",
                format!(
                    "autovacuum visits {name}, where it has nothing to clean and is in the way"
                ),
                Remedy::psql(format!(
                    "alter table {name} set (autovacuum_enabled = off, \
                     toast.autovacuum_enabled = off);"
                )),
            );
        }
        if self.is_unlogged {
            findings.problem(
                "leaves",
                format!("{name} is unlogged: a crash of postgresql empties it"),
                Remedy::psql(format!("alter table {name} set logged;")),
            );
        }
    }
}

async fn leaves(subject: &Subject<'_>, findings: &mut Findings) -> Result<(), Failure> {
    const LEAVES: &str = include_str!("sql/leaves.sql");
    const SHAPE: &str = include_str!("sql/shape.sql");
    for row in subject.client.query(LEAVES, &[]).await? {
        let leaf = Leaf {
            slot: row.get(0),
            is_there: row.get(1),
            is_attached: row.get(2),
            has_key: row.get(3),
            vacuums: row.get(4),
            is_unlogged: row.get(5),
        };
        leaf.judge(findings);
    }
    let shape = subject.client.query_one(SHAPE, &[]).await?;
    if let Some(others) = shape.get::<_, Option<String>>(0) {
        findings.problem(
            "leaves",
            format!("the outbox has leaves that are not of the ring: {others}"),
            Remedy::person("move their events into the ring, then detach and drop them"),
        );
    }
    if !shape.get::<_, bool>(1) {
        findings.problem(
            "forgery",
            "a publisher can forge the transaction of an event, which then is skipped",
            Remedy::psql(
                "alter table pillarbox.event add constraint tx_is_of_this_transaction \
                 check (tx = pg_catalog.pg_current_xact_id()) not valid;",
            ),
        );
    }
    if !shape.get::<_, bool>(2) {
        findings.warning(
            "checks",
            "the outbox lacks the one check of events: those of an older version make publishing slower, and \
             without any it takes what no sink can",
            Remedy::psql("select pillarbox.unite_checks();"),
        );
    }
    findings.fine_unless_found("leaves", "four leaves in their places");
    findings.fine_unless_found("key", "each leaf has its key (tx, id)");
    findings.fine_unless_found("autovacuum", "autovacuum leaves the leaves alone");
    findings.fine_unless_found("checks", "events are checked as they are published");
    findings.fine_unless_found("forgery", "the transaction of an event cannot be forged");
    Ok(())
}

async fn publications(subject: &Subject<'_>, findings: &mut Findings) -> Result<(), Failure> {
    const PUBLICATIONS: &str = include_str!("sql/publications.sql");
    for row in subject.client.query(PUBLICATIONS, &[]).await? {
        let (name, is_for_all): (String, bool) = (row.get(0), row.get(1));
        let remedy = match (is_for_all, row.get::<_, Option<String>>(2)) {
            (true, _) => Remedy::person(format!(
                "the publication {name} is for all tables, and cannot leave any out: create it again \
                 for those that it is meant for"
            )),
            (_, Some(tables)) => {
                Remedy::psql(format!("alter publication {name} drop table {tables};"))
            }
            (_, None) => Remedy::psql(format!(
                "alter publication {name} drop tables in schema pillarbox;"
            )),
        };
        let message = format!(
            "the publication {name} has the outbox in it: every event is decoded and sent a second \
             time, and each truncation of a leaf too"
        );
        findings.warning("publication", message, remedy);
    }
    findings.fine_unless_found("publication", "in no publication");
    Ok(())
}

/// What others put on the outbox.
async fn additions(subject: &Subject<'_>, findings: &mut Findings) -> Result<(), Failure> {
    const ADDITIONS: &str = include_str!("sql/additions.sql");
    for row in subject.client.query(ADDITIONS, &[]).await? {
        let [kind, table, name]: [String; 3] = [row.get(0), row.get(1), row.get(2)];
        match kind.as_str() {
            "trigger" => findings.warning(
                "trigger",
                format!("the trigger {name} on {table} runs for every event, and can change or drop it"),
                Remedy::psql(format!("drop trigger {name} on {table};")),
            ),
            "rule" => findings.problem(
                "rule",
                format!("the rule {name} on {table} rewrites what publishers write"),
                Remedy::psql(format!("drop rule {name} on {table};")),
            ),
            "policy" => findings.problem(
                "row-security",
                format!("row-level security is on for {table}: it hides events, so a relay refuses it"),
                Remedy::psql(format!(
                    "alter table {table} disable row level security, no force row level security;"
                )),
            ),
            _ => findings.warning(
                "index",
                format!("the index {name} on {table} makes every publisher slower, and no relay reads it"),
                Remedy::psql(format!("drop index {name};")),
            ),
        }
    }
    findings.fine_unless_found("trigger", "no trigger");
    findings.fine_unless_found("rule", "no rule");
    findings.fine_unless_found("row-security", "no row-level security");
    findings.fine_unless_found("index", "no index but its keys");
    Ok(())
}
