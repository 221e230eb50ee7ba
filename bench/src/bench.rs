//! What every part of the benchmark is told.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// What ten million events take in both servers, with the WAL that PostgreSQL may keep.
const SPACE_GIB: f64 = 22.0;

/// The program under test, and how much is measured.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Everything, not only what the targets need.
    pub(crate) full: bool,
    /// `BENCH_SHARE`: the share of all counts that a shortened run has, 1 in a whole one.
    pub(crate) share: f64,
    /// The program `pillarbox` of the same build.
    pub(crate) pillarbox: PathBuf,
}

impl Bench {
    pub(crate) fn new(full: bool) -> Result<Self> {
        let share = match std::env::var("BENCH_SHARE") {
            Ok(text) => text
                .parse()
                .with_context(|| format!("BENCH_SHARE is {text:?}; use a number such as 0.1"))?,
            Err(_) => 1.0,
        };
        ensure!(
            share > 0.0 && share <= 1.0,
            "BENCH_SHARE is {share}; use a number above 0 and up to 1"
        );
        let pillarbox = std::env::current_exe()?.with_file_name("pillarbox");
        ensure!(
            pillarbox.exists(),
            "{} is not built; run `make bench`",
            pillarbox.display()
        );
        ensure_space(share)?;
        Ok(Self {
            full,
            share,
            pillarbox,
        })
    }

    /// Whether counts are smaller than they are meant to be, so that figures prove nothing.
    pub(crate) fn is_shortened(&self) -> bool {
        self.share < 1.0
    }

    /// A count, or the share of it that a shortened run has; one at least.
    pub(crate) fn count(&self, whole: u64) -> u64 {
        ((whole as f64 * self.share) as u64).max(1)
    }
}

/// A full disk in the middle would cost the rest of the run.
fn ensure_space(share: f64) -> Result<()> {
    let place = std::env::temp_dir();
    let space = rustix::fs::statvfs(&place)
        .with_context(|| format!("asking for the free space of {}", place.display()))?;
    let free = (space.f_bavail as f64) * (space.f_frsize as f64) / f64::from(1 << 30);
    let needed = SPACE_GIB * share;
    ensure!(
        free >= needed,
        "{} has {free:.0} GiB free, the servers of the benchmark need {needed:.0}; make room, or set TMPDIR",
        place.display()
    );
    Ok(())
}
