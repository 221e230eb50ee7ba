//! What `make demo` runs: real servers, the sample application, writers of every kind and the relay;
//! the relay is killed, ClickHouse restarted; then every event is compared by id and content.
//!
//! Everything lives in temporary directories and ends with this process.

mod child;
mod config;
mod progress;
mod record;
mod report;
mod stage;
mod traffic;
mod trouble;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use config::Config;
use pillarbox_testkit::servers::Flavour;
use progress::Board;
use record::Record;
use report::Report;
use stage::Stage;
use traffic::Traffic;

/// How long everything may take to arrive when traffic has stopped: a backlog of a restarted
/// ClickHouse takes seconds.
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);

/// Between two looks at the status while waiting for the rest to arrive.
const DRAIN_POLL: Duration = Duration::from_millis(200);

/// 128 + SIGINT, as a shell reports it.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let compared = OnceLock::new();
    match run_or_signal(&compared).await {
        Ok(Some(true)) => ExitCode::SUCCESS,
        Ok(Some(false)) => ExitCode::FAILURE,
        Ok(None) => {
            eprintln!("demo: interrupted; nothing is left running");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the comparison found nothing; none if a signal came before. When it returns, every
/// server and child has ended.
async fn run_or_signal(compared: &OnceLock<bool>) -> Result<Option<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        outcome = run(compared) => outcome?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(compared.get().copied())
}

/// The whole demo; says in `compared` whether the comparison found nothing.
async fn run(compared: &OnceLock<bool>) -> Result<()> {
    let config = Config::from_env()?;
    let board = Board::new();
    let engine = match config.flavour {
        Flavour::V18 => "18.16",
        Flavour::V26 => "26.9",
    };
    board.say(&format!(
        "starting postgresql and clickhouse {engine}, installing the schema"
    ));
    let mut stage = Stage::start(&config).await?;
    board.say(&format!(
        "users serves on {}, the relay runs (pid {}); traffic for {} s",
        stage.users_url,
        stage.relay.pid(),
        config.duration.as_secs()
    ));
    let record = Arc::new(Record::default());
    let played = play(&config, &mut stage, &record, &board).await;
    if let Err(error) = played {
        board.clear();
        eprintln!("{}\n{}", stage.users.log_tail(), stage.relay.log_tail());
        return Err(error);
    }
    let report = Report::make(&stage, &record, config.precision()).await?;
    board.say("compared every event by id and content");
    board.clear();
    println!("\n{}\n{}\n", report::SAMPLE, report::sample(&stage).await?);
    println!(
        "{} events of rolled-back transactions and savepoints stayed out",
        report.rolled_back()
    );
    if !report.holds() {
        eprintln!("{}{}", report.explain(), stage.relay.log_tail());
    }
    let _ = compared.set(report.holds());
    if config.keep {
        println!("{}", report.line());
        keep(&stage).await;
    } else {
        drop(stage);
        println!("{}", report.line());
    }
    Ok(())
}

/// Traffic under trouble, until everything has arrived.
async fn play(
    config: &Config,
    stage: &mut Stage,
    record: &Arc<Record>,
    board: &Board,
) -> Result<()> {
    let mut traffic = Traffic::start(stage, record).await?;
    let (statuses, clickhouse) = (stage.cli.statuses()?, Arc::clone(&stage.clickhouse));
    let outcome = async {
        tokio::select! {
            made = trouble::make(stage, config.duration, board) => made?,
            failed = traffic.failed() => failed?,
        }
        traffic.stop().await?;
        board.say("traffic has stopped; waiting until everything has arrived");
        drained(stage).await
    };
    tokio::select! {
        outcome = outcome => outcome,
        never = board.watch(statuses, &clickhouse, record) => match never {},
    }
}

/// Waits until the status shows nothing on its way.
async fn drained(stage: &mut Stage) -> Result<()> {
    let started = Instant::now();
    loop {
        let status = stage.cli.status().await?;
        if status.is_drained() {
            return Ok(());
        }
        if let Some(reason) = status.stopped_reason {
            bail!("the sink is {}: {reason}", status.state);
        }
        if started.elapsed() > DRAIN_DEADLINE {
            bail!("events were still on their way after {DRAIN_DEADLINE:?}: {status:?}");
        }
        stage.relay.run_for(DRAIN_POLL).await?;
    }
}

/// Says what can be tried, and waits for Ctrl-C.
async fn keep(stage: &Stage) {
    let cli = &stage.cli;
    let pillarbox = cli.program.display();
    println!(
        "\nEverything keeps running until Ctrl-C. Try, in another terminal:\n\n\
         export DATABASE_URL={}\n\
         export CLICKHOUSE_URL={}\n\
         {pillarbox} status --watch\n\
         {pillarbox} events --since 5m --limit 10\n\
         {pillarbox} publish user_created '{{\"name\": \"Ada\"}}'\n\
         curl -s {}/users -H 'content-type: application/json' \\\n  \
         -d '{{\"email\":\"ada@example.com\",\"first_name\":\"Ada\",\"last_name\":\"Lovelace\"}}'\n\
         psql \"$DATABASE_URL\" -c 'table pillarbox.delivery'\n\
         curl -s '{}' -u {}:{} --data-binary 'select count() from events'",
        cli.database_url,
        cli.clickhouse_url,
        stage.users_url,
        stage.clickhouse.url(),
        stage.clickhouse.user(),
        stage.clickhouse.password(),
    );
    std::future::pending::<()>().await;
}
