//! At work beside the spine: the beat, and the tending of the ring.

use tokio::sync::watch;

use super::{Halt, Relay};
use crate::clock::Clock;
use crate::sink::Sink;
use crate::source::{Session, Source, SourceError, Switches};

impl<S: Source, K: Sink, C: Clock> Relay<S, K, C> {
    /// Shows that this relay lives, and that it is not stuck.
    pub(super) async fn beat(
        &self,
        session: &S::Session,
        switch: &watch::Sender<Switches>,
    ) -> Result<(), Halt> {
        loop {
            self.clock.sleep(self.options.beat_every).await;
            let switches = session.beat().await?;
            if switches.retired {
                return Err(Halt::Retired);
            }
            switch.send_replace(switches);
            let still = self.pulse.progress_age(self.clock.now());
            if still > self.options.stuck_after {
                return Err(Halt::Stuck(still));
            }
        }
    }

    /// Turns the ring and empties its leaves.
    pub(super) async fn tend(&self, session: &S::Session) -> Result<(), Halt> {
        loop {
            self.clock.sleep(self.options.tend_every).await;
            match session.tend().await {
                // Events go on being delivered beside a ring that somebody has to mend.
                Err(SourceError::Broken(reason)) => {
                    tracing::error!(reason, "the ring stands still")
                }
                tended => tended?,
            }
        }
    }
}
