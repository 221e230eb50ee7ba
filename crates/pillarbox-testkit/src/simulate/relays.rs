//! The relays of a sink: started again when they end, killed, frozen, stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pillarbox_relay::clock::Clock as _;
use pillarbox_relay::relay::{Options, Relay};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::session::SimSource;
use super::world::Eyes;
use crate::fake::FakeSink;

/// A supervisor starts a relay again after at most this long.
const RESTART_MS_MAX: u64 = 4_000;

/// A place where one relay runs, life after life.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    control: Arc<Control>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Control {
    gate: Gate,
    kill: Notify,
    is_over: AtomicBool,
    stop: Mutex<CancellationToken>,
}

impl Slot {
    pub(super) fn start(name: String, eyes: &Eyes, sink: &FakeSink, options: &Options) -> Self {
        let control = Arc::new(Control::default());
        let supervised = supervise(
            name.clone(),
            eyes.clone(),
            sink.clone(),
            options.clone(),
            Arc::clone(&control),
        );
        Self {
            name,
            control,
            task: tokio::spawn(supervised),
        }
    }

    /// As `kill -9`.
    pub(super) fn kill(&self) {
        self.control.gate.open();
        self.control.kill.notify_one();
    }

    /// As SIGSTOP.
    pub(super) fn freeze(&self) {
        self.control.gate.shut();
    }

    /// As SIGCONT.
    pub(super) fn resume(&self) {
        self.control.gate.open();
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.control.gate.is_shut()
    }

    /// As SIGTERM; its supervisor starts it again.
    pub(super) fn terminate(&self) {
        let stop = self.control.stop.lock();
        stop.unwrap_or_else(PoisonError::into_inner).cancel();
    }

    /// Ends it for good. Says whether it ended well.
    pub(super) async fn end(self) -> bool {
        self.resume();
        self.control.is_over.store(true, Ordering::SeqCst);
        self.terminate();
        self.task.await.is_ok()
    }
}

async fn supervise(
    name: String,
    eyes: Eyes,
    sink: FakeSink,
    options: Options,
    control: Arc<Control>,
) {
    let mut life = 0;
    while !control.is_over.load(Ordering::SeqCst) {
        life += 1;
        let relay = format!("{name}.{life}");
        let source = SimSource {
            inner: eyes.database.source(&options.sink, &relay),
            relay: relay.clone(),
            eyes: eyes.clone(),
        };
        let stop = CancellationToken::new();
        {
            let current = control.stop.lock();
            *current.unwrap_or_else(PoisonError::into_inner) = stop.clone();
        }
        let spine = Relay::new(source, sink.clone(), eyes.clock.clone(), options.clone());
        let ended = tokio::select! { biased;
            () = control.kill.notified() => "was killed".to_owned(),
            ended = control.gate.through(spine.run(&stop)) => match ended {
                Ok(()) => "ended".to_owned(),
                Err(halt) => format!("ended: {halt}"),
            },
        };
        eyes.trace.note(format_args!("{relay} {ended}"));
        let wait = Duration::from_millis(eyes.clock.below(RESTART_MS_MAX));
        eyes.clock.sleep(wait).await;
    }
}
