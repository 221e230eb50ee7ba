//! Who holds the lock of a sink.

use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error};

use crate::schema::LOCK_CLASS;

/// A session that holds the lock of a sink.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    /// Its `application_name`.
    pub(crate) name: String,
    /// How long it has not run a statement; `None` when this user may not know.
    pub(crate) silence: Option<Duration>,
    /// When its last statement ended, by the server's clock; `None` when this user may not know.
    changed_at: Option<SystemTime>,
    user: Option<String>,
    pid: i32,
    address: Option<String>,
    /// Whether this user may end its sessions.
    pub(crate) may_end: bool,
}

impl Holder {
    /// Who holds the lock of the sink, if anybody does.
    pub(crate) async fn of(client: &Client, sink: i32) -> Result<Option<Self>, Error> {
        const HOLDER: &str = include_str!("sql/holder.sql");
        let given: &[&(dyn ToSql + Sync)] = &[&LOCK_CLASS, &sink];
        let found = client.query_opt(HOLDER, given).await?;
        Ok(found.map(|row| {
            let silence: Option<f64> = row.get(1);
            Self {
                name: row.get(0),
                silence: silence.and_then(|s| Duration::try_from_secs_f64(s).ok()),
                user: row.get(2),
                pid: row.get(3),
                address: row.get(4),
                may_end: row.get(5),
                changed_at: row.get(6),
            }
        }))
    }

    /// Whether it is a relay, which must show that it lives.
    pub(crate) fn is_relay(&self) -> bool {
        self.name.starts_with("pillarbox/")
    }
}

/// What a stand-by has seen of a holder.
#[derive(Debug, Default)]
pub(crate) struct Watch(Option<Seen>);

#[derive(Debug)]
struct Seen {
    pid: i32,
    changed_at: SystemTime,
    since: Instant,
}

impl Watch {
    /// How long the holder has shown no life under these eyes, from question to question, by a clock that
    /// nobody sets: the server's may jump, and then every session looks silent.
    pub(crate) fn look(&mut self, holder: &Holder, asked_at: Instant) -> Duration {
        let Some(changed_at) = holder.changed_at else {
            self.0 = None;
            return Duration::ZERO;
        };
        let known = self
            .0
            .take()
            .filter(|seen| (seen.pid, seen.changed_at) == (holder.pid, changed_at));
        let seen = known.unwrap_or(Seen {
            pid: holder.pid,
            changed_at,
            since: asked_at,
        });
        let shown_none_for = asked_at - seen.since;
        self.0 = Some(seen);
        shown_none_for
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}", self.name, self.pid)?;
        if let Some(user) = &self.user {
            write!(f, ", user {user}")?;
        }
        if let Some(address) = &self.address {
            write!(f, ", from {address}")?;
        }
        f.write_str(")")
    }
}
