//! Traffic: an application over HTTP, and writers that publish in every way there is.

mod context;
mod users;
mod writers;

pub(crate) use users::settle;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::record::Record;
use crate::stage::Stage;

/// Sessions that create users over HTTP.
const USERS: usize = 3;

/// Told to every generator: finish the transaction at hand.
pub(crate) type Stop = Arc<AtomicBool>;

pub(crate) struct Traffic {
    generators: JoinSet<Result<()>>,
    stop: Stop,
}

impl Traffic {
    /// Starts all generators.
    pub(crate) async fn start(stage: &Stage, record: &Arc<Record>) -> Result<Self> {
        let stop = Stop::default();
        let mut generators = JoinSet::new();
        writers::start(&mut generators, &stage.app_url, record, &stop).await?;
        for number in 0..USERS {
            let url = format!("{}/users", stage.users_url);
            let (record, stop) = (Arc::clone(record), Arc::clone(&stop));
            generators.spawn(async move { users::create(number, &url, &record, &stop).await });
        }
        Ok(Self { generators, stop })
    }

    /// Ends with an error when a generator does. Never ends otherwise before [`Traffic::stop`].
    pub(crate) async fn failed(&mut self) -> Result<()> {
        while let Some(ended) = self.generators.join_next().await {
            ended?.context("a generator of traffic failed")?;
        }
        Ok(())
    }

    /// Lets every generator finish its transaction.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.failed().await
    }
}
