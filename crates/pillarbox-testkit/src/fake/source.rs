//! Opens sessions on the fake database: the lock of a sink, and who takes it over from whom.

use std::time::Duration;

use pillarbox_relay::clock::Clock as _;
use pillarbox_relay::source::{Source, SourceError, Standby};

use super::database::{FakeDatabase, State};
use super::fault::{SessionFault, SessionOperation};
use super::session::{FakeSession, STATEMENT_TIMEOUT, lost};

/// How often a stand-by asks for the lock.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

/// One sink's outbox and ledger in a [`FakeDatabase`], for one relay.
#[derive(Clone, Debug)]
pub struct FakeSource {
    database: FakeDatabase,
    sink: String,
    relay: String,
    takeover_after: Duration,
}

impl FakeDatabase {
    /// A source for a registered sink, for a relay of this name. A relay that shows no life for 15
    /// seconds is displaced.
    pub fn source(&self, sink: &str, relay: &str) -> FakeSource {
        FakeSource {
            database: self.clone(),
            sink: sink.to_owned(),
            relay: relay.to_owned(),
            takeover_after: Duration::from_secs(15),
        }
    }
}

impl FakeSource {
    /// The same with another time after which a silent relay is displaced.
    pub fn takeover_after(mut self, takeover_after: Duration) -> Self {
        self.takeover_after = takeover_after;
        self
    }

    /// Takes the lock, or says that another one has it, having displaced that one if it is frozen.
    fn try_lock(&self, session: u64, sink: i32) -> Result<bool, SourceError> {
        let now = self.database.clock().elapsed();
        let mut state = self.database.state();
        if !state.sessions.contains_key(&session) {
            return Err(lost("the session was ended"));
        }
        let locks = !state.weakness.lock_is_shared;
        let mut others = state.sessions.values().filter(|_| locks);
        let holder = others.find(|other| other.sink == sink && other.has_lock);
        let Some(holder) = holder else {
            if let Some(own) = state.sessions.get_mut(&session) {
                own.has_lock = true;
                own.last_statement = now;
            }
            return Ok(true);
        };
        if now.saturating_sub(holder.last_statement) >= self.takeover_after {
            let relay = holder.relay.clone();
            state
                .sessions
                .retain(|id, other| *id == session || other.relay != relay);
        }
        Ok(false)
    }

    /// The sink, if it may be served.
    fn registered(&self, state: &State) -> Result<i32, SourceError> {
        let found = state.disk.ledger.sink(&self.sink);
        let registered = found.and_then(|id| Some((id, state.disk.ledger.sinks.get(&id)?)));
        match registered {
            None => Err(SourceError::Refused(format!(
                "no sink named {} is registered",
                self.sink
            ))),
            Some((_, sink)) if sink.retired => Err(SourceError::Refused(format!(
                "the sink {} was retired",
                self.sink
            ))),
            Some((id, _)) => Ok(id),
        }
    }
}

impl Source for FakeSource {
    type Session = FakeSession;

    async fn take_over(&self, standby: Standby) -> Result<Option<FakeSession>, SourceError> {
        tokio::task::yield_now().await;
        let fault = self
            .database
            .state()
            .script
            .next(SessionOperation::TakeOver);
        match fault {
            None => {}
            Some(SessionFault::Slow(wait)) => self.database.clock().sleep(wait).await,
            Some(SessionFault::Hang | SessionFault::HangAfter) => {
                self.database.clock().sleep(STATEMENT_TIMEOUT).await;
                return Err(lost("the server did not answer"));
            }
            Some(SessionFault::LostBefore | SessionFault::LostAfter) => {
                return Err(lost("the connection broke"));
            }
            Some(SessionFault::CrashBefore | SessionFault::CrashAfter) => {
                self.database.crash(true);
                return Err(lost("the server crashed"));
            }
        }
        let (sink, id) = {
            let now = self.database.clock().elapsed();
            let mut state = self.database.state();
            let sink = self.registered(&state)?;
            (sink, state.connect(sink, &self.relay, now))
        };
        // Dropped, it ends the session.
        let session = FakeSession::new(self.database.clone(), id, sink);
        while !self.try_lock(id, sink)? {
            if standby == Standby::Leave {
                return Ok(None);
            }
            self.database.clock().sleep(STANDBY_INTERVAL).await;
        }
        Ok(Some(session))
    }
}
