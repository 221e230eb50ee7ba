//! The program `pillarbox`: one file per subcommand in `command`.
//!
//! A library, so that a test can build the program with failpoints.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pillarbox_relay::config::{Config, ConfigError};
use pillarbox_relay::postgres::{self, Session};

mod backlog;
#[cfg(feature = "sentry")]
mod collector;
mod command;
mod destination;
mod exit;
mod identifier;
mod intakes;
mod logging;
mod output;
mod registered;
mod when;

pub use exit::Exit;
use exit::{Failure, Outcome};

/// Under which name sessions of the command line show up in `pg_stat_activity`.
const APPLICATION_NAME: &str = "pillarbox";

const AFTER_HELP: &str = "\
First steps:
  export DATABASE_URL=postgresql://user:password@localhost:5432/app
  export CLICKHOUSE_URL=http://user:password@localhost:8123/default
  pillarbox migrate          install the schema pillarbox
  pillarbox sink create      create the table in ClickHouse and register it
  pillarbox publish user_created '{\"name\": \"Ada\"}'
  pillarbox relay --once     deliver what is there
  pillarbox status           see where everything stands

Configuration: defaults, then pillarbox.toml, then the environment (PILLARBOX_RELAY__MAX_ROWS=100000
sets max_rows under [relay]; DATABASE_URL and CLICKHOUSE_URL are read too).

Exit codes:
  0  done
  1  failed
  2  wrong usage or configuration
  3  refused: something has to be mended or decided first; the message says what
  4  a server is unreachable; trying again later may help";

/// Moves events from PostgreSQL transactions into ClickHouse, exactly once.
#[derive(Debug, Parser)]
#[command(name = "pillarbox", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    /// Configuration file [default: pillarbox.toml, where it is there]
    #[arg(long, global = true, value_name = "PATH", env = "PILLARBOX_CONFIG")]
    config: Option<PathBuf>,

    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(command::init::Init),
    Migrate(command::migrate::Migrate),
    Settings(command::settings::Settings),
    Grant(command::grant::Grant),
    Sink(command::sink::Sink),
    Relay(command::relay::Relay),
    Intake(command::intake::Intake),
    Status(command::status::Status),
    Doctor(command::doctor::Doctor),
    Pause(command::pause::Pause),
    Resume(command::pause::Resume),
    Columns(command::columns::Columns),
    Verify(command::verify::Verify),
    DeadLetters(command::dead_letters::DeadLetters),
    Replay(command::replay::Replay),
    Events(command::events::Events),
    Publish(command::publish::Publish),
    Import(command::import::Import),
    Recover(command::recover::Recover),
    Bench(command::bench::Bench),
    Uninstall(command::uninstall::Uninstall),
}

/// What every subcommand is given.
#[derive(Debug)]
struct Place {
    config: Option<PathBuf>,
    json: bool,
}

impl Place {
    /// The configuration.
    fn config(&self) -> Result<Config, ConfigError> {
        // A variable that is not Unicode cannot be one of ours.
        let readable = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Config::load(
            self.config.as_deref(),
            std::env::vars_os().filter_map(readable),
        )
    }

    /// A session with the configured PostgreSQL.
    async fn session(&self) -> Result<Session, Failure> {
        let target = self.config()?.postgres()?;
        postgres::check_direct(&target, APPLICATION_NAME).await?;
        Ok(postgres::connect(&target, APPLICATION_NAME).await?)
    }
}

/// Runs the program with these arguments, the first of which is its name, on a runtime of its own.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(run(arguments));
            // Spines that were told twice to stop are abandoned.
            runtime.shutdown_background();
            exit.into()
        }
        Err(error) => exit::report(&Failure::failed(error)).into(),
    }
}

/// Runs the program with these arguments, the first of which is its name.
///
/// Dropping the future abandons the command as a kill would.
pub async fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(answer) => {
            // Help and version are answers too, and go to standard output.
            let _ = answer.print();
            return if answer.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
        }
    };
    let place = Place {
        config: arguments.config,
        json: arguments.json,
    };
    match dispatch(arguments.command, &place).await {
        Ok(exit) => exit,
        Err(failure) => exit::report(&failure),
    }
}

async fn dispatch(command: Command, place: &Place) -> Outcome {
    if !matches!(command, Command::Relay(_) | Command::Intake(_)) {
        logging::quiet();
    }
    match command {
        Command::Init(command) => command.run(place),
        Command::Migrate(command) => command.run(place).await,
        Command::Settings(command) => command.run(place).await,
        Command::Grant(command) => command.run(place).await,
        Command::Sink(command) => command.run(place).await,
        Command::Relay(command) => command.run(place).await,
        Command::Intake(command) => command.run(place).await,
        Command::Status(command) => command.run(place).await,
        Command::Doctor(command) => command.run(place).await,
        Command::Pause(command) => command.run(place).await,
        Command::Resume(command) => command.run(place).await,
        Command::Columns(command) => command.run(place).await,
        Command::Verify(command) => command.run(place).await,
        Command::DeadLetters(command) => command.run(place).await,
        Command::Replay(command) => command.run(place).await,
        Command::Events(command) => command.run(place).await,
        Command::Publish(command) => command.run(place).await,
        Command::Import(command) => command.run(place).await,
        Command::Recover(command) => command.run(place).await,
        Command::Bench(command) => command.run(place).await,
        Command::Uninstall(command) => command.run(place).await,
    }
}
