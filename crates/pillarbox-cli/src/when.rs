//! Times on the command line.

use jiff::{SignedDuration, Timestamp, Unit};

/// A time, or a duration back from now.
pub(crate) fn instant(text: &str) -> Result<Timestamp, String> {
    let refuse = || {
        format!("{text:?} is neither a duration such as 1h nor a time such as 2026-11-20T10:00:00Z")
    };
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    // The friendly format knows days only as parts of spans; here a day has 24 hours.
    let back = match text.strip_suffix('d').map(str::parse::<i64>) {
        Some(Ok(days)) => SignedDuration::try_from_hours(days.saturating_mul(24)),
        _ => text.parse().ok(),
    };
    let back = back.filter(|back| !back.is_negative()).ok_or_else(refuse)?;
    let time = Timestamp::now().checked_sub(back).map_err(|_| refuse())?;
    time.round(Unit::Microsecond).map_err(|_| refuse())
}
