//! A clock that a test sets, for one server: libfaketime reads the offset from a file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::servers::tools::installed;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The variables of a server whose clock is set by the file in `place`.
pub(super) fn environment(place: &Path) -> Result<Vec<String>> {
    let library = installed("libfaketime", PathBuf::from(LIBRARY))?;
    shift(place, 0)?;
    let file = file(place);
    Ok(vec![
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        // Timeouts count on a clock that nobody sets.
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ])
}

/// Sets the offset; at once for every process of the server.
pub(super) fn shift(place: &Path, seconds: i64) -> Result<()> {
    let fresh = place.join("clock.new");
    fs::write(&fresh, format!("{seconds:+}s\n"))?;
    fs::rename(&fresh, file(place)).context("setting the clock")
}

fn file(place: &Path) -> PathBuf {
    place.join("clock")
}
