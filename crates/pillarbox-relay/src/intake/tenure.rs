//! The session that holds an intake's lock, and through which everything of it is written: without the
//! session there is no commit.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, IsolationLevel, Transaction};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::trouble::{IntakeError, in_time, timed};
use super::writing::Written;
use crate::failpoint::step;
use crate::postgres::{self, Session, Warnings};
use crate::schema::{self, INTAKE_LOCK_CLASS};

/// The server ends a session that shows no life for this long: longer than the longest wait between two
/// attempts, and than one command of Redis inside of a transaction.
const SILENCE_MAX: &str = "90s";

/// How often an idle session shows life.
const BEAT: Duration = Duration::from_secs(1);

/// How often a stand-by asks for the lock.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

/// Who an intake is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    /// The key in Redis, or what identifies the imported lines.
    pub(crate) source: String,
}

/// A tenure of an intake.
#[derive(Debug)]
pub(crate) struct Tenure {
    session: Session,
    pub(crate) intake: i32,
    /// Stream: the greatest id that was taken. Import: the bytes that were, and the lines.
    pub(crate) position: Option<String>,
    /// Up to where nothing is remembered.
    pub(crate) forgotten: Option<String>,
    forgot_at: Option<Instant>,
    beat_at: Instant,
    /// The greatest chunk of a list that is recorded, once it was asked for.
    pub(crate) greatest: Option<Option<Uuid>>,
}

/// What a transaction changes in the standing of an intake.
#[derive(Debug)]
pub(crate) struct Advance<'a> {
    /// The position afterwards; `None` where it stays.
    pub(crate) position: Option<&'a str>,
    pub(crate) written: Written,
    /// Entries that came again and were not taken.
    pub(crate) restored: u64,
}

impl Tenure {
    /// Registers the intake where it is new, and waits for its lock, no longer than `patience`.
    pub(crate) async fn begin(
        config: &Config,
        identity: &Identity,
        patience: Option<Duration>,
        stop: &CancellationToken,
    ) -> Result<Self, IntakeError> {
        const LOCK: &str = include_str!("sql/lock.sql");
        const SESSION: &str = include_str!("sql/session.sql");
        let application = format!("pillarbox/intake/{}", identity.name);
        let session = postgres::connect(config, &application).await?;
        let client = session.client();
        timed(async { Ok(postgres::check_server(client).await?) }).await?;
        timed(async { Ok(schema::check_version(client).await?) }).await?;
        in_time(client.query_one(SESSION, &[&SILENCE_MAX])).await?;
        let intake = register(&session, identity).await?;
        let mut is_announced = false;
        let began = Instant::now();
        loop {
            let given: &[&(dyn ToSql + Sync)] = &[&INTAKE_LOCK_CLASS, &intake];
            let lock = in_time(client.query_one(LOCK, given)).await?;
            if lock.get(0) {
                break;
            }
            if patience.is_some_and(|patience| began.elapsed() >= patience) {
                return Err(IntakeError::NotActive(identity.name.clone()));
            }
            if !is_announced {
                tracing::info!("another process is active for this intake: standing by");
                is_announced = true;
            }
            tokio::select! { biased;
                () = stop.cancelled() => return Err(IntakeError::Stopped),
                () = tokio::time::sleep(STANDBY_INTERVAL) => {}
            }
        }
        let mut tenure = Self {
            session,
            intake,
            position: None,
            forgotten: None,
            forgot_at: None,
            beat_at: Instant::now(),
            greatest: None,
        };
        // After the lock: whoever held it has written its last.
        tenure.reload().await?;
        step!("intake-locked");
        Ok(tenure)
    }

    async fn reload(&mut self) -> Result<(), IntakeError> {
        const STANDING: &str = include_str!("sql/standing.sql");
        let row = in_time(self.client().query_one(STANDING, &[&self.intake])).await?;
        self.position = row.get(0);
        self.forgotten = row.get(1);
        Ok(())
    }

    pub(crate) fn client(&self) -> &tokio_postgres::Client {
        self.session.client()
    }

    /// Shows life, and notices a session that is gone; at most once a second.
    pub(crate) async fn beat(&mut self) -> Result<(), IntakeError> {
        if self.beat_at.elapsed() >= BEAT {
            in_time(self.client().execute("select 1", &[])).await?;
            self.beat_at = Instant::now();
        }
        Ok(())
    }

    pub(crate) async fn transaction(&mut self) -> Result<Transaction<'_>, IntakeError> {
        let begin = self.session.client_mut().build_transaction();
        in_time(begin.isolation_level(IsolationLevel::ReadCommitted).start()).await
    }

    /// What the server warns of; see [`commit`].
    pub(crate) fn warnings(&self) -> Warnings {
        self.session.warnings().clone()
    }

    /// Makes sure that what was committed before is durable, without a change that anybody sees.
    pub(crate) async fn settle(&mut self) -> Result<(), IntakeError> {
        let (intake, before, warnings) = (self.intake, self.position.clone(), self.warnings());
        let nothing = Advance {
            position: None,
            written: Written::default(),
            restored: 0,
        };
        let transaction = self.transaction().await?;
        nothing
            .write(&transaction, intake, before.as_deref())
            .await?;
        commit(transaction, &warnings).await
    }

    /// Forgets what was taken long ago; at most once a minute.
    pub(crate) async fn forget(
        &mut self,
        kind: Forget,
        remember: Duration,
    ) -> Result<(), IntakeError> {
        const EVERY: Duration = Duration::from_secs(60);
        const STREAM: &str = include_str!("sql/forget_stream.sql");
        const LIST: &str = include_str!("sql/forget_list.sql");
        const FORGOT: &str = include_str!("sql/forgot.sql");
        if self.forgot_at.is_some_and(|at| at.elapsed() < EVERY) {
            return Ok(());
        }
        let (intake, known) = (self.intake, self.forgotten.clone());
        let transaction = self.transaction().await?;
        let given: &[&(dyn ToSql + Sync)] = &[&intake, &remember.as_secs_f64()];
        let greatest = match kind {
            Forget::Stream => in_time(transaction.query_opt(STREAM, given))
                .await?
                .and_then(|row| super::stream::Id::read(row.get(0)))
                .map(|id| id.to_string()),
            Forget::List => in_time(transaction.query_opt(LIST, given))
                .await?
                .map(|row| row.get::<_, Uuid>(0).to_string()),
        };
        let is_more = |greatest: &String| match (&known, kind) {
            (None, _) => true,
            (Some(known), Forget::List) => greatest > known,
            (Some(known), Forget::Stream) => {
                super::stream::Id::parse(greatest) > super::stream::Id::parse(known)
            }
        };
        let greatest = greatest.filter(is_more);
        if let Some(greatest) = &greatest {
            in_time(transaction.execute(FORGOT, &[&intake, greatest])).await?;
        }
        in_time(transaction.commit()).await?;
        self.forgotten = greatest.or(known);
        self.forgot_at = Some(Instant::now());
        Ok(())
    }
}

/// Commits durably. A COMMIT that was cancelled while it waited for a synchronous stand-by warns, and may be
/// lost with this server.
pub(crate) async fn commit(
    transaction: Transaction<'_>,
    warnings: &Warnings,
) -> Result<(), IntakeError> {
    // Whatever a trigger has warned of is none of its business.
    warnings.take();
    in_time(transaction.commit()).await?;
    match warnings.take() {
        None => Ok(()),
        Some(warning) => Err(IntakeError::Away {
            what: format!("postgresql warns: {warning}"),
            source: None,
        }),
    }
}

/// What is remembered, and so forgotten.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Forget {
    Stream,
    List,
}

impl Advance<'_> {
    /// Writes it, behind the fence of the position before.
    pub(crate) async fn write(
        &self,
        transaction: &Transaction<'_>,
        intake: i32,
        before: Option<&str>,
    ) -> Result<(), IntakeError> {
        const ADVANCE: &str = include_str!("sql/advance.sql");
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let after = self.position.or(before);
        let (taken, dead) = (number(self.written.taken), number(self.written.dead));
        let restored = number(self.restored);
        let given: &[&(dyn ToSql + Sync)] = &[&intake, &before, &after, &taken, &dead, &restored];
        match in_time(transaction.execute(ADVANCE, given)).await? {
            1 => Ok(()),
            _ => Err(IntakeError::Away {
                what: "another process has moved the position of this intake".to_owned(),
                source: None,
            }),
        }
    }
}

async fn register(session: &Session, identity: &Identity) -> Result<i32, IntakeError> {
    const REGISTER: &str = include_str!("sql/register.sql");
    const INTAKE: &str = include_str!("sql/intake.sql");
    let Identity { name, kind, source } = identity;
    let client = session.client();
    loop {
        let Some(row) = in_time(client.query_opt(INTAKE, &[name])).await? else {
            let given: &[&(dyn ToSql + Sync)] = &[name, kind, source];
            in_time(client.execute(REGISTER, given)).await?;
            continue;
        };
        let (known_kind, known_source): (String, String) = (row.get(1), row.get(2));
        if known_kind == *kind && known_source == *source {
            return Ok(row.get(0));
        }
        return Err(IntakeError::Refused(match *kind {
            "import" if known_kind == "import" => format!(
                "the import {name} has begun with other lines than these; give the same file again, or \
                 another --name for another file"
            ),
            _ => format!(
                "the intake {name} is of the {known_kind} {known_source}, and {kind} {source} is \
                 configured; give what is another queue another name"
            ),
        }));
    }
}
