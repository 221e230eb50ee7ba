//! An intake or an import with failpoints, for tests that kill it.
//!
//! `FAILPOINTS` names the step at which it ends as by `kill -9`; `MODE` is `run`, `drain` or `import`, the
//! other variables say what it works on. Exits with 0 after a clean stop, a whole drain or a whole import.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pillarbox_relay::config::{self, ByteSize, IntakeKind, Period};
use pillarbox_relay::intake::Intake;
use pillarbox_relay::intake::import::{Import, Input};
use pillarbox_relay::postgres::parse_url;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<()> {
    let _failpoints = fail::FailScenario::setup();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let postgres = parse_url(&variable("DATABASE_URL")?)?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let stopper = stop.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        stopper.cancel();
    });
    let mode = variable("MODE")?;
    if mode == "import" {
        return import(&postgres, &stop).await;
    }
    let config = config::Intake {
        kind: Some(match variable("KIND")?.as_str() {
            "redis-stream" => IntakeKind::RedisStream,
            "redis-list" => IntakeKind::RedisList,
            other => bail!("{other} is no kind"),
        }),
        url: Some(variable("REDIS_URL")?.into()),
        key: variable("KEY")?,
        max_rows: number("MAX_ROWS", 20)?,
        max_bytes: ByteSize(number("MAX_BYTES", 8 * 1024 * 1024)?),
        max_age: Period(Duration::from_millis(number("MAX_AGE_MS", 5)?)),
        remember: Period(Duration::from_secs(number("REMEMBER_S", 7_200)?)),
    };
    let intake = Intake::new(&variable("NAME")?, &config, postgres)?;
    let summary = match mode.as_str() {
        "run" => intake.run(&stop).await,
        _ => intake.drain(&stop).await,
    }?;
    println!("{} {} {}", summary.taken, summary.dead, summary.restored);
    Ok(())
}

async fn import(postgres: &tokio_postgres::Config, stop: &CancellationToken) -> Result<()> {
    let path = variable("FILE")?;
    let job = Import {
        name: std::env::var("NAME").ok(),
        is_strict: number("STRICT", 0)? == 1,
    };
    let input = Input {
        from: Box::new(std::fs::File::open(&path)?),
        path,
        is_resumable: true,
    };
    let imported = job.run(input, postgres, stop, |_, _| ()).await?;
    println!(
        "{} {} {}",
        imported.taken, imported.dead, imported.lines_before
    );
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name} is not a number: {text}")),
        Err(_) => Ok(default),
    }
}
