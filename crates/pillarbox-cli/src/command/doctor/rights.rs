//! Who may do what: the relay's user enough, everybody else not too much.

use super::Subject;
use super::finding::{Findings, Remedy};
use crate::exit::Failure;

/// Rights that are too wide are named up to here.
const NAMED_MAX: usize = 20;

/// What a publisher may write.
const PUBLISHED_COLUMNS: &str = "event_id, event_type, event_date_time, environment, \
                                 event_context, metadata_version, trace_parent";

pub(super) async fn examine(subject: &Subject<'_>) -> Result<Findings, Failure> {
    let mut findings = Findings::of("rights");
    own(subject, &mut findings).await?;
    wide(subject, &mut findings).await?;
    Ok(findings)
}

async fn own(subject: &Subject<'_>, findings: &mut Findings) -> Result<(), Failure> {
    const MISSING: &str = include_str!("sql/rights_missing.sql");
    let rows = subject.client.query(MISSING, &[]).await?;
    let missing: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let user = subject
        .client
        .query_one("select pg_catalog.quote_ident(current_user)", &[]);
    let user: String = user.await?.get(0);
    if missing.is_empty() {
        findings.ok("relay", format!("{user} may relay"));
        return Ok(());
    }
    let more = missing.len().saturating_sub(3);
    let mut what = missing.into_iter().take(3).collect::<Vec<_>>().join(", ");
    if more > 0 {
        what = format!("{what} and {more} more");
    }
    findings.problem(
        "relay",
        format!("{user} may not relay: missing {what}"),
        Remedy::psql(format!("grant pillarbox_relay to {user};")),
    );
    Ok(())
}

async fn wide(subject: &Subject<'_>, findings: &mut Findings) -> Result<(), Failure> {
    const WIDE: &str = include_str!("sql/rights_wide.sql");
    let rows = subject.client.query(WIDE, &[]).await?;
    for row in rows.iter().take(NAMED_MAX) {
        let wide = Wide {
            is_sequence: row.get(0),
            object: row.get(1),
            privilege: row.get::<_, String>(2).to_lowercase(),
            column: row.get(3),
            user: row.get(4),
        };
        findings.warning("others", wide.message(), Remedy::Psql(wide.remedy()));
    }
    if rows.len() > NAMED_MAX {
        let more = rows.len() - NAMED_MAX;
        findings.skipped("others", format!("{more} more rights that are too wide"));
    }
    findings.fine_unless_found("others", "nobody else may change outbox, ring or ledger");
    Ok(())
}

/// A right that somebody should not have.
struct Wide {
    is_sequence: bool,
    object: String,
    privilege: String,
    column: Option<String>,
    user: String,
}

impl Wide {
    fn message(&self) -> String {
        let Self {
            object,
            privilege,
            user,
            ..
        } = self;
        let why = match (self.is_sequence, privilege.as_str()) {
            (true, _) => "whoever moves the ring decides where events are stored",
            (_, "insert") if self.column.is_some() => "only defaults may set it",
            (_, "insert") => "a publisher writes some columns and leaves the others to defaults",
            (_, "select") => "events are not for everybody",
            (_, "trigger") => "a trigger can change or drop events",
            _ => "rows are only ever added, and truncated by the relay",
        };
        format!("{user} has {} on {object}: {why}", self.right())
    }

    fn right(&self) -> String {
        match &self.column {
            Some(column) => format!("{} ({column})", self.privilege),
            None => self.privilege.clone(),
        }
    }

    fn remedy(&self) -> String {
        let kind = if self.is_sequence { "sequence " } else { "" };
        let (object, user) = (&self.object, &self.user);
        let mut remedy = format!("revoke {} on {kind}{object} from {user};", self.right());
        let is_insert = self.privilege == "insert" && self.column.is_none();
        // Revoking it for the table revokes it for each column.
        if is_insert && user == "pillarbox_publisher" {
            remedy += &format!(" grant insert ({PUBLISHED_COLUMNS}) on {object} to {user};");
        } else if is_insert && user != "public" && object == "pillarbox.event" {
            remedy += &format!(" grant pillarbox_publisher to {user};");
        }
        remedy
    }
}
