//! Live progress: one line that changes on a terminal, a line every two seconds elsewhere.

use std::convert::Infallible;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pillarbox_testkit::servers::ClickHouse;
use tokio::time::MissedTickBehavior;

use crate::record::Record;
use crate::stage::Statuses;

/// How often the line changes.
const REFRESH: Duration = Duration::from_millis(500);
/// Every how many refreshes a line is printed where lines do not change; and while something is
/// broken.
const PLAIN_EVERY: u32 = 4;
const PLAIN_EVERY_BROKEN: u32 = 2;

/// Where everything is shown.
pub(crate) struct Board {
    started: Instant,
    bar: Option<ProgressBar>,
    broken: Mutex<Option<String>>,
}

impl Board {
    pub(crate) fn new() -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            started: Instant::now(),
            bar,
            broken: Mutex::new(None),
        }
    }

    /// Prints a line that stays.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("{:>5.1} s  {text}", self.started.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            None => println!("{line}"),
        }
    }

    /// Says what is being broken.
    pub(crate) fn breaks(&self, text: &str) {
        self.say(&format!("*** {text}"));
        *self.broken() = Some(text.to_owned());
    }

    /// Says what was mended.
    pub(crate) fn mends(&self, text: &str) {
        self.say(&format!("    {text}"));
        *self.broken() = None;
    }

    /// Removes the changing line.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Shows how things stand, twice a second, until it is dropped.
    pub(crate) async fn watch(
        &self,
        mut statuses: Statuses,
        clickhouse: &ClickHouse,
        record: &Record,
    ) -> Infallible {
        let mut every = tokio::time::interval(REFRESH);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut lag, mut delivered) = ("0.0 s".to_owned(), "0".to_owned());
        let mut tick = 0_u32;
        loop {
            tokio::select! {
                status = statuses.next() => match status {
                    Ok(status) => {
                        let lag_ms = status.lag_ms.unsigned_abs();
                        lag = format!("{:.1} s", Duration::from_millis(lag_ms).as_secs_f64());
                        continue;
                    }
                    // The run itself reports what is wrong.
                    Err(_) => return std::future::pending().await,
                },
                _ = every.tick() => {}
            }
            let broken = self.broken().clone();
            // A stopping 18.16 serves open connections to their end: asking on would keep it up.
            if broken.is_none()
                && let Ok(count) = clickhouse.query("select count() from events").await
            {
                delivered = count.trim().to_owned();
            }
            let is_due = tick.is_multiple_of(if broken.is_some() {
                PLAIN_EVERY_BROKEN
            } else {
                PLAIN_EVERY
            });
            let text = format!(
                "published {:>6}  delivered {delivered:>6}  lag {lag:>6}  rolled back {:>5}  {}",
                record.published(),
                record.rolled_back_count(),
                broken.as_deref().unwrap_or("all is up"),
            );
            match &self.bar {
                Some(bar) => {
                    bar.set_message(text);
                    bar.tick();
                }
                None if is_due => self.say(&text),
                None => {}
            }
            tick = tick.wrapping_add(1);
        }
    }

    fn broken(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
