//! The PostgreSQL side: installs the schema `pillarbox`, and reads and changes its settings.

use std::fmt::Write as _;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::backoff::Backoff;
use crate::postgres::{ConnectError, check_server};

pub mod check;
pub mod column;
mod keeper;
pub mod registry;
pub mod settings;

/// The version of the schema that this program installs and works with.
pub const VERSION: i32 = 4;

/// Advisory lock class of Pillarbox: 'PBOX' in ASCII. Object 0 is the ring, -1 the installation,
/// a positive one the sink of that number.
pub const LOCK_CLASS: i32 = 0x5042_4f58;

/// Advisory lock class of intakes: 'PBIN' in ASCII. The object is the number of the intake.
pub const INTAKE_LOCK_CLASS: i32 = 0x5042_494e;

/// Object of the lock under which the schema is installed.
const LOCK_INSTALLATION: i32 = -1;

/// Installing in several databases at once collides in catalogs that the cluster shares.
const ATTEMPTS_MAX: u32 = 10;

/// The steps to the newest schema: the version that each belongs to, its name, its statements.
const FILES: [(i32, &str, &str); 11] = [
    (1, "01_roles", include_str!("schema/sql/01_roles.sql")),
    (1, "02_outbox", include_str!("schema/sql/02_outbox.sql")),
    (1, "03_publish", include_str!("schema/sql/03_publish.sql")),
    (1, "04_ledger", include_str!("schema/sql/04_ledger.sql")),
    (1, "05_position", include_str!("schema/sql/05_position.sql")),
    (1, "06_registry", include_str!("schema/sql/06_registry.sql")),
    (1, "07_grants", include_str!("schema/sql/07_grants.sql")),
    (
        2,
        "08_dead_letters",
        include_str!("schema/sql/08_dead_letters.sql"),
    ),
    (2, "09_recovery", include_str!("schema/sql/09_recovery.sql")),
    (3, "10_intake", include_str!("schema/sql/10_intake.sql")),
    (4, "11_check", include_str!("schema/sql/11_check.sql")),
];

/// How long an upgrade waits for a table that a relay or a reader uses: what comes behind it waits, too.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '1s'";

/// Between two attempts to have the outbox for a moment: publishers that had to wait go first.
const BETWEEN_ATTEMPTS: Backoff = Backoff {
    first: Duration::from_millis(200),
    last: Duration::from_secs(2),
};

/// What a migration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migrated {
    /// The schema was not there, and is now.
    Installed,
    /// An older version was there, and is this one now.
    Upgraded {
        /// The version before.
        from: i32,
    },
    /// The schema was there already.
    UpToDate,
}

/// Why the schema could not be installed, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The server is not one that Pillarbox can work with.
    #[error(transparent)]
    Server(#[from] ConnectError),
    /// The schema is not there.
    #[error("the schema pillarbox is not installed in this database; run: pillarbox migrate")]
    Missing,
    /// The schema is newer than this program.
    #[error(
        "the schema pillarbox has version {found}, but this program knows version {VERSION}; \
         install a newer pillarbox"
    )]
    Newer {
        /// The installed version.
        found: i32,
    },
    /// The schema is older than this program.
    #[error(
        "the schema pillarbox has version {found}, but this program needs version {VERSION}; \
         run: pillarbox migrate"
    )]
    Older {
        /// The installed version.
        found: i32,
    },
    /// The user may not do this.
    #[error("{reason}; {remedy}")]
    Rights {
        /// The server's words.
        reason: String,
        /// What a database administrator runs.
        remedy: String,
    },
    /// Somebody keeps a table that the upgrade has to change.
    #[error("a table of the schema pillarbox is in use; {keepers}; then run: pillarbox migrate")]
    InUse {
        /// Who that is, with the remedy.
        keepers: String,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A statement failed.
    #[error("postgresql refused a statement on the schema pillarbox")]
    Statement(#[source] tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for SchemaError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(answer) = error.as_db_error() else {
            return Self::Statement(error);
        };
        if [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].contains(answer.code()) {
            return Self::Missing;
        }
        if *answer.code() == SqlState::INSUFFICIENT_PRIVILEGE {
            return Self::Rights {
                reason: answer.message().to_owned(),
                remedy: "connect as a user that was granted the right role, \
                         for example with: pillarbox grant USER --as relay"
                    .to_owned(),
            };
        }
        if *answer.code() == SqlState::RAISE_EXCEPTION {
            return Self::Invalid(answer.message().to_owned());
        }
        Self::Statement(error)
    }
}

/// The statements that lead from an installed version, 0 for none, to this one, as one transaction to
/// be run by `psql`.
pub fn print(installed: i32) -> String {
    let mut script = String::from("begin isolation level read committed;\n");
    let _ = writeln!(
        script,
        "select pg_advisory_xact_lock({LOCK_CLASS}, {LOCK_INSTALLATION});"
    );
    let _ = writeln!(
        script,
        "-- Whoever needs a table waits behind this script: if it fails for that, run it again.\n\
         {LOCK_TIMEOUT};"
    );
    for (_, name, text) in FILES.iter().filter(|(version, ..)| *version > installed) {
        let _ = write!(script, "\n-- {name}\n{text}");
    }
    script.push_str("\ncommit;\n");
    script
}

/// Installs the schema, or upgrades an older one, in one transaction; does nothing where it is there.
/// Safe when run by many at once, and beside publishers and relays: a relay of the older version goes
/// on until it has to take over again. Dropping the future rolls back.
///
/// # Errors
/// When the server is unsuitable, the schema is newer, the user lacks the rights, or somebody keeps a
/// table that has to be changed.
pub async fn migrate(client: &mut Client) -> Result<Migrated, SchemaError> {
    migrate_to(client, VERSION).await
}

/// Installs or upgrades to `version` and no further; see [`migrate`].
///
/// # Errors
/// Those of [`migrate`].
pub async fn migrate_to(client: &mut Client, version: i32) -> Result<Migrated, SchemaError> {
    check_server(client).await?;
    let mut attempt = 1;
    loop {
        match install(client, version).await {
            Err(error) if attempt < ATTEMPTS_MAX && is_collision(&error) => attempt += 1,
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                let keepers = keeper::name(client, keeper::Tables::Others).await?;
                return Err(SchemaError::InUse { keepers });
            }
            Err(error) if is_missing_right(&error) => return Err(needs_administrator(&error)),
            Err(error) => return Err(error.into()),
            Ok(Err(found)) => return Err(SchemaError::Newer { found }),
            Ok(Ok(done)) => return Ok(done),
        }
    }
}

/// The installed version.
///
/// # Errors
/// [`SchemaError::Missing`] when there is none.
pub async fn installed_version(client: &Client) -> Result<i32, SchemaError> {
    const FIND: &str = "select max(version) from pillarbox.schema_version";
    let found: Option<i32> = client.query_one(FIND, &[]).await?.get(0);
    found.ok_or(SchemaError::Missing)
}

/// Refuses a schema that this program does not know.
///
/// # Errors
/// When the schema is missing or newer.
pub async fn check_version(client: &Client) -> Result<(), SchemaError> {
    let found = installed_version(client).await?;
    if found > VERSION {
        return Err(SchemaError::Newer { found });
    }
    if found < VERSION {
        return Err(SchemaError::Older { found });
    }
    Ok(())
}

async fn install(
    client: &mut Client,
    version: i32,
) -> Result<Result<Migrated, i32>, tokio_postgres::Error> {
    let transaction = client
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::ReadCommitted)
        .start()
        .await?;
    let lock = "select pg_catalog.pg_advisory_xact_lock($1, $2)";
    transaction
        .execute(lock, &[&LOCK_CLASS, &LOCK_INSTALLATION])
        .await?;
    let there = "select to_regclass('pillarbox.schema_version') is not null";
    let mut from = 0;
    if transaction.query_one(there, &[]).await?.get(0) {
        let installed = "select max(version) from pillarbox.schema_version";
        from = transaction.query_one(installed, &[]).await?.get(0);
        if from > VERSION {
            return Ok(Err(from));
        }
    }
    if from >= version {
        return Ok(Ok(Migrated::UpToDate));
    }
    transaction.batch_execute(LOCK_TIMEOUT).await?;
    for (of, _, text) in FILES {
        if of > from && of <= version {
            transaction.batch_execute(text).await?;
        }
    }
    transaction.commit().await?;
    Ok(Ok(if from == 0 {
        Migrated::Installed
    } else {
        Migrated::Upgraded { from }
    }))
}

/// "tuple concurrently updated" has no code of its own.
fn is_collision(error: &tokio_postgres::Error) -> bool {
    let collisions = [
        SqlState::INTERNAL_ERROR,
        SqlState::UNIQUE_VIOLATION,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
    ];
    error.code().is_some_and(|code| collisions.contains(code))
}

fn is_missing_right(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
}

fn needs_administrator(error: &tokio_postgres::Error) -> SchemaError {
    let reason = error
        .as_db_error()
        .map_or_else(|| error.to_string(), |a| a.message().to_owned());
    SchemaError::Rights {
        reason,
        remedy: "installing needs CREATE on the database and, once per cluster, CREATEROLE; \
                 a database administrator can run: pillarbox migrate --print | psql"
            .to_owned(),
    }
}
