//! What a benchmark has on both servers: a database and a table of the same name. The database is made
//! first and dropped last, so that it tells of the table.

use std::time::{Duration, SystemTime};

use pillarbox_relay::postgres::{self, Session};
use pillarbox_relay::schema;
use pillarbox_relay::sink::Trouble;
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;

use super::report::Servers;
use super::rights::{Rights, drop_roles};
use super::{go_on, name, step};
use crate::APPLICATION_NAME;
use crate::destination::Destination;
use crate::exit::{Failure, chain};
use crate::identifier::quoted;

/// How long dropping a database may take: its files are unlinked, and a checkpoint may come before that.
const DROP_TIMEOUT: Duration = Duration::from_secs(120);

/// ClickHouse: answers after which there is no table of ours.
const TABLE_ALREADY_EXISTS: u32 = 57;
const UNKNOWN_DATABASE: u32 = 81;
const ACCESS_DENIED: u32 = 497;

pub(super) struct Site {
    /// Of database and table.
    pub(super) name: String,
    /// The database of the user.
    home: Config,
    /// The database of the benchmark.
    pub(super) target: Config,
    /// The table of the benchmark.
    pub(super) destination: Destination,
    /// Named as the database, it tells `--clean` that this benchmark runs.
    keeper: Session,
    may_have_database: bool,
    may_have_table: bool,
}

impl Site {
    /// Connects to PostgreSQL and makes nothing.
    pub(super) async fn new(home: Config, destination: &Destination) -> Result<Self, Failure> {
        let name = name::new(SystemTime::now());
        postgres::check_direct(&home, APPLICATION_NAME).await?;
        let keeper = postgres::connect(&home, &name).await?;
        postgres::check_server(keeper.client()).await?;
        let mut target = home.clone();
        target.dbname(&name);
        Ok(Self {
            destination: destination.with_table(&name)?,
            name,
            home,
            target,
            keeper,
            may_have_database: false,
            may_have_table: false,
        })
    }

    /// Host and port of PostgreSQL.
    pub(super) fn address(&self) -> String {
        postgres::target(&self.home)
    }

    /// A session in the database of the benchmark.
    pub(super) async fn session(&self) -> Result<Session, Failure> {
        Ok(postgres::connect(&self.target, APPLICATION_NAME).await?)
    }

    /// Makes database, schema and table. A stop request is looked at only between the steps: what a server
    /// has begun, it may complete after we have gone.
    pub(super) async fn make(&mut self, stop: &CancellationToken) -> Result<Servers, Failure> {
        let rights = Rights::read(self.keeper.client()).await?;
        rights.check()?;
        let reached = self.destination.sink.dialect().await;
        reached.map_err(|trouble| self.destination.blame(trouble))?;
        go_on(stop)?;
        self.create_database().await?;
        go_on(stop)?;
        rights.make_roles(self.keeper.client()).await?;
        let mut session = self.session().await?;
        schema::migrate(session.client_mut()).await?;
        session
            .client()
            .batch_execute(include_str!("sql/tables.sql"))
            .await?;
        go_on(stop)?;
        self.create_table().await?;
        go_on(stop)?;
        let plan = self.destination.prepare(session.client()).await?;
        if rights.fsync != "on" {
            step(
                "bench: this postgresql runs with fsync off: its figures are not those of a durable one",
            );
        }
        Ok(Servers {
            name: self.name.clone(),
            sink: self.destination.name.clone(),
            postgresql: rights.version,
            fsync: rights.fsync,
            clickhouse: plan.report().version.clone(),
            guarantee: plan.report().guarantee.to_owned(),
        })
    }

    async fn create_database(&mut self) -> Result<(), Failure> {
        const STATEMENT: &str = include_str!("sql/create_database.sql");
        let client = self.keeper.client();
        let statement: String = client.query_one(STATEMENT, &[&self.name]).await?.get(0);
        let created = client.batch_execute(&statement).await;
        // Without an answer it may be there.
        self.may_have_database = !created
            .as_ref()
            .is_err_and(|error| error.as_db_error().is_some());
        Ok(created?)
    }

    async fn create_table(&mut self) -> Result<(), Failure> {
        let created = self.destination.sink.create_scratch().await;
        let refusals = [TABLE_ALREADY_EXISTS, UNKNOWN_DATABASE, ACCESS_DENIED];
        let code = created.as_ref().err().and_then(|trouble| trouble.code);
        self.may_have_table = !code.is_some_and(|code| refusals.contains(&code));
        created.map_err(|trouble| self.no_table(trouble))
    }

    fn no_table(&self, trouble: Trouble) -> Failure {
        let (sink, database) = (&self.destination.name, &self.destination.config.database);
        match trouble.code {
            Some(UNKNOWN_DATABASE) => Failure::refused(format!(
                "sink {sink}: clickhouse has no database {database}; pillarbox sink create {sink} makes it"
            )),
            Some(ACCESS_DENIED) => self.destination.blame(trouble).of(format!(
                "the benchmark needs a table of its own; grant create table, drop table on {database}.* to \
                 the sink's user"
            )),
            _ => self.destination.blame(trouble),
        }
    }

    /// Drops everything; gives what a person has to run where that failed.
    pub(super) async fn clear(self) -> Vec<String> {
        let mut left = Vec::new();
        if self.may_have_table {
            let dropped = self.destination.sink.drop_scratch(&self.name).await;
            if let Err(trouble) = dropped {
                left.push(drop_table_by_hand(&self.destination, &self.name, &trouble));
            }
        }
        if self.may_have_database {
            let dropped = drop_database(&self.home, &self.name, Sessions::End).await;
            left.extend(dropped.err());
        }
        left
    }
}

/// Who is connected to a database that is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sessions {
    /// Ours, or nobody.
    End,
    /// Somebody else: it stays.
    Spare,
}

/// Drops the database of a benchmark, and the roles that it made; the error is what a person has to run.
pub(super) async fn drop_database(
    home: &Config,
    name: &str,
    sessions: Sessions,
) -> Result<(), String> {
    let database = quoted(name);
    let with_force = match sessions {
        Sessions::End => " with (force)",
        Sessions::Spare => "",
    };
    let by_hand = |reason: String| {
        format!(
            "in postgresql, because it could not be done ({reason}): drop database {database}{with_force}"
        )
    };
    let work = async {
        let session = postgres::connect(home, APPLICATION_NAME).await;
        let session = session.map_err(|error| chain(&error))?;
        let client = session.client();
        let statement = format!("drop database if exists {database}{with_force}");
        let dropped = client.batch_execute(&statement).await;
        dropped.map_err(|error| chain(&error))?;
        // Roles that stay harm nobody, and the next benchmark tries again.
        if let Err(error) = drop_roles(client, name).await {
            tracing::warn!(error = chain(&error), "roles of the benchmark stay");
        }
        Ok(())
    };
    let ended = tokio::time::timeout(DROP_TIMEOUT, work).await;
    ended
        .unwrap_or_else(|_| Err("no answer".to_owned()))
        .map_err(by_hand)
}

/// What a person has to run when a table could not be dropped.
pub(super) fn drop_table_by_hand(
    destination: &Destination,
    table: &str,
    trouble: &Trouble,
) -> String {
    format!(
        "in clickhouse, because it could not be done ({}): DROP TABLE {}.`{table}`",
        chain(trouble),
        destination.database()
    )
}
