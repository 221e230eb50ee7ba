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

/// Between two looks of a stand-by, no more counts as silence of the holder: the server may have been
/// frozen, or away, and the holder could not show life. A live one needs less than twice that.
const STRIDE_MAX: Duration = Duration::from_secs(2);

/// What a stand-by has seen of a holder, in all its sessions.
#[derive(Debug, Default)]
pub(crate) struct Watch(Option<Seen>);

#[derive(Debug)]
struct Seen {
    pid: i32,
    changed_at: SystemTime,
    asked_at: Instant,
    shown_none_for: Duration,
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
        let shown_none_for = known.map_or(Duration::ZERO, |seen| {
            seen.shown_none_for + (asked_at - seen.asked_at).min(STRIDE_MAX)
        });
        self.0 = Some(Seen {
            pid: holder.pid,
            changed_at,
            asked_at,
            shown_none_for,
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(pid: i32, changed_s: u64) -> Holder {
        Holder {
            name: "pillarbox/events/1".to_owned(),
            silence: None,
            changed_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(changed_s)),
            user: None,
            pid,
            address: None,
            may_end: true,
        }
    }

    #[test]
    fn silence_counts_while_the_server_answers() {
        let start = Instant::now();
        let mut watch = Watch::default();
        let mut look = |pid, changed_s, at_s| {
            let asked_at = start + Duration::from_secs(at_s);
            watch.look(&holder(pid, changed_s), asked_at).as_secs()
        };
        assert_eq!(look(1, 7, 0), 0);
        assert_eq!(look(1, 7, 1), 1);
        // Nobody could look for a minute, whoever's fault that is.
        assert_eq!(look(1, 7, 61), 3);
        assert_eq!(look(1, 7, 62), 4);
        // A sign of life, and another session.
        assert_eq!(look(1, 8, 63), 0);
        assert_eq!(look(1, 8, 64), 1);
        assert_eq!(look(2, 8, 65), 0);
    }
}
