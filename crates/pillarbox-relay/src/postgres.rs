//! Connections to PostgreSQL: how every session of ours is opened, and what a server must be.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::poll_fn;
use rustls::RootCertStore;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

mod hosts;
pub mod pooler;
pub(crate) mod quote;

/// Oldest server whose `pg_current_xact_id`, `xid8` and `pg_snapshot` are as the schema needs them.
const SERVER_VERSION_MIN: i32 = 140_000;

/// How long opening a session may take: a server that is up answers within milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What each session starts with. The outbox has no statistics on purpose, so the planner must be
/// kept from sorts, hash joins and sequential scans; the time limits of a DBA's role settings are
/// meant for applications and would cut a COPY of a long backlog. A row-level policy would hide events
/// from the relay, and from the check before a TRUNCATE: with row_security off it is an error instead.
const SESSION_SETTINGS: &str = "
    set default_transaction_isolation = 'read committed';
    set default_transaction_read_only = off;
    set synchronous_commit = on;
    set enable_seqscan = off;
    set enable_bitmapscan = off;
    set enable_hashjoin = off;
    set enable_mergejoin = off;
    set enable_sort = off;
    set enable_incremental_sort = off;
    set max_parallel_workers_per_gather = 0;
    set jit = off;
    set plan_cache_mode = force_generic_plan;
    set statement_timeout = 0;
    set lock_timeout = 0;
    set idle_in_transaction_session_timeout = 0;
    set search_path = pg_catalog;
    set row_security = off;
    set timezone = 'UTC';
    set datestyle = 'ISO';
    set intervalstyle = 'postgres';
    set extra_float_digits = 1;
    set bytea_output = 'hex';
    set client_min_messages = 'warning';
    select pg_catalog.set_config(s.name, '0', false)
    from pg_catalog.pg_settings s
    where s.name in ('idle_session_timeout', 'transaction_timeout');
";

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL cannot be read.
    #[error(
        "the postgresql url cannot be read; write postgresql://user:password@host:5432/database"
    )]
    Url(#[source] tokio_postgres::Error),
    /// The server could not be reached; it may be starting.
    #[error("postgresql at {target} does not answer; is it running, and is the address right?")]
    Unreachable {
        /// Host and port, without user and password.
        target: String,
        /// What happened.
        #[source]
        source: Option<tokio_postgres::Error>,
    },
    /// The server refuses this user, password or database.
    #[error("postgresql at {target} refuses the connection: {reason}")]
    Refused {
        /// Host and port, without user and password.
        target: String,
        /// The server's words.
        reason: String,
    },
    /// The server is not one that Pillarbox can work with.
    #[error("{0}")]
    Unsuitable(String),
}

impl ConnectError {
    fn pooled(target: String) -> Self {
        Self::Unsuitable(format!(
            "postgresql at {target} is reached through a connection pooler, which does not keep a \
             session's lock and settings; {}",
            pooler::REMEDY
        ))
    }
}

/// A session, which ends when this is dropped.
pub struct Session {
    client: Client,
    driver: JoinHandle<()>,
    warnings: Warnings,
    cancel: Canceller,
}

/// What the server warns of beside its answers.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Option<String>>>);

impl Warnings {
    /// The last warning since the last call.
    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, warning: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(warning.to_owned());
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("closed", &self.client.is_closed())
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The client, for transactions.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The warnings of this session.
    pub fn warnings(&self) -> &Warnings {
        &self.warnings
    }

    /// What cancels the statement that the session is running.
    pub fn canceller(&self) -> &Canceller {
        &self.cancel
    }
}

/// Cancels a running statement from another connection.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    tls: Option<MakeRustlsConnect>,
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Canceller")
    }
}

impl Canceller {
    /// Asks the server to cancel; the statement may still end by itself.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn cancel(&self) -> Result<(), tokio_postgres::Error> {
        match &self.tls {
            Some(tls) => self.token.cancel_query(tls.clone()).await,
            None => self.token.cancel_query(NoTls).await,
        }
    }
}

/// Reads a URL.
///
/// # Errors
/// When it is not a PostgreSQL URL.
pub fn parse_url(url: &str) -> Result<Config, ConnectError> {
    url.parse::<Config>().map_err(ConnectError::Url)
}

/// Opens a session under `application_name`, with the settings that every session of ours has. Of
/// several hosts it is the first that answers in time and, where the configuration says so, takes
/// writes.
///
/// # Errors
/// When no server can be reached, or one refuses, or a pooler shows itself: our settings would stay in
/// its server connection, for the next one who is given it.
pub async fn connect(config: &Config, application_name: &str) -> Result<Session, ConnectError> {
    let mut away = ConnectError::Unreachable {
        target: target(config),
        source: None,
    };
    for host in hosts::each(config) {
        match connect_to(&host, application_name).await {
            // As libpq does: only what is not there is passed over.
            Err(error @ ConnectError::Unreachable { .. }) => away = error,
            other => return other,
        }
    }
    Err(away)
}

async fn connect_to(config: &Config, application_name: &str) -> Result<Session, ConnectError> {
    let opening = async {
        // Twice, because a clock that is set at this moment looks like a pooler once.
        for _ in 0..2 {
            let began = Instant::now();
            let session = open(config, application_name).await?;
            if pooler::is_shown(config, &session, began).await? {
                continue;
            }
            let set = session.client.batch_execute(SESSION_SETTINGS).await;
            set.map_err(|error| refusal(target(config), error))?;
            return Ok(session);
        }
        Err(ConnectError::pooled(target(config)))
    };
    in_time(config, opening).await
}

/// Refuses a server that is reached through a connection pooler.
///
/// # Errors
/// When one is found, or the server cannot be reached or refuses.
pub async fn check_direct(config: &Config, application_name: &str) -> Result<(), ConnectError> {
    match in_time(config, pooler::find(config, application_name)).await? {
        None => Ok(()),
        Some(_) => Err(ConnectError::pooled(target(config))),
    }
}

/// Opens a session without changing anything in it.
async fn open(config: &Config, application_name: &str) -> Result<Session, ConnectError> {
    let mut config = config.clone();
    config
        .application_name(application_name)
        .connect_timeout(CONNECT_TIMEOUT);
    config
        .keepalives_idle(Duration::from_secs(10))
        .keepalives_interval(Duration::from_secs(5));
    let refused = |error| refusal(target(&config), error);
    if config.get_ssl_mode() == SslMode::Disable {
        let (client, connection) = config.connect(NoTls).await.map_err(refused)?;
        return Ok(drive(client, connection, None));
    }
    let tls = MakeRustlsConnect::new(tls_config()?);
    let (client, connection) = config.connect(tls.clone()).await.map_err(refused)?;
    Ok(drive(client, connection, Some(tls)))
}

async fn in_time<T>(
    config: &Config,
    opening: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(ConnectError::Unreachable {
            target: target(config),
            source: None,
        }),
    }
}

/// Refuses a server that Pillarbox cannot work with.
///
/// # Errors
/// [`ConnectError::Unsuitable`] with the remedy.
pub async fn check_server(client: &Client) -> Result<(), ConnectError> {
    const FACTS: &str = include_str!("postgres/server.sql");
    let row = client
        .query_one(FACTS, &[])
        .await
        .map_err(|error| ConnectError::Unreachable {
            target: "the session".to_owned(),
            source: Some(error),
        })?;
    let facts = Facts {
        number: row.get(0),
        version: row.get(1),
        encoding: row.get(2),
        in_recovery: row.get(3),
    };
    facts
        .obstacle()
        .map_or(Ok(()), |reason| Err(ConnectError::Unsuitable(reason)))
}

/// What a server is, as far as Pillarbox depends on it.
struct Facts {
    /// As in `server_version_num`.
    number: i32,
    version: String,
    encoding: String,
    in_recovery: bool,
}

impl Facts {
    /// Why Pillarbox cannot work with it, with the remedy.
    fn obstacle(&self) -> Option<String> {
        let Self {
            version, encoding, ..
        } = self;
        if self.number < SERVER_VERSION_MIN {
            return Some(format!(
                "postgresql {version} is too old: version 14 or later is needed"
            ));
        }
        if encoding != "UTF8" {
            return Some(format!(
                "the database's encoding is {encoding}, but event_context must be UTF8: \
                 create the database with ENCODING 'UTF8'"
            ));
        }
        self.in_recovery.then(|| {
            "this server is a standby (in recovery): connect to the primary, \
             for example with target_session_attrs=read-write and both hosts in the url"
                .to_owned()
        })
    }
}

fn drive<S, T>(
    client: Client,
    mut connection: Connection<S, T>,
    tls: Option<MakeRustlsConnect>,
) -> Session
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let warnings = Warnings::default();
    let noted = warnings.clone();
    let cancel = Canceller {
        token: client.cancel_token(),
        tls,
    };
    let driver = tokio::spawn(async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
                Ok(AsyncMessage::Notice(notice)) => {
                    tracing::warn!(notice = %notice, "postgresql warns");
                    noted.note(notice.message());
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "connection to postgresql ended");
                    return;
                }
            }
        }
    });
    Session {
        client,
        driver,
        warnings,
        cancel,
    }
}

/// Sessions that are opened together read the machine's certificates once; later ones read them again, as
/// these may have been replaced.
const CERTIFICATES_FOR: Duration = Duration::from_secs(60);

fn tls_config() -> Result<rustls::ClientConfig, ConnectError> {
    static LAST: Mutex<Option<(Instant, rustls::ClientConfig)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((read_at, config)) = &*last
        && read_at.elapsed() < CERTIFICATES_FOR
    {
        return Ok(config.clone());
    }
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectError::Unsuitable(format!("tls cannot be set up: {error}")))?;
    let config = versions.with_root_certificates(roots).with_no_client_auth();
    Ok(last.insert((Instant::now(), config)).1.clone())
}

fn refusal(target: String, error: tokio_postgres::Error) -> ConnectError {
    let Some(answer) = error.as_db_error() else {
        return ConnectError::Unreachable {
            target,
            source: Some(error),
        };
    };
    // A limit of the role may strike before our settings lift it.
    let passing = [
        SqlState::QUERY_CANCELED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        SqlState::IDLE_SESSION_TIMEOUT,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::TOO_MANY_CONNECTIONS,
    ];
    if passing.contains(answer.code()) {
        return ConnectError::Unreachable {
            target,
            source: Some(error),
        };
    }
    ConnectError::Refused {
        target,
        reason: answer.message().to_owned(),
    }
}

/// Host and port, without user and password.
pub fn target(config: &Config) -> String {
    use tokio_postgres::config::Host;
    let ports = config.get_ports();
    let hosts = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(position, host)| {
            let port = ports
                .get(position)
                .or(ports.first())
                .copied()
                .unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        });
    hosts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: i32, version: &str) -> Facts {
        Facts {
            number,
            version: version.to_owned(),
            encoding: "UTF8".to_owned(),
            in_recovery: false,
        }
    }

    #[test]
    fn a_server_before_14_is_too_old() {
        for (number, version) in [(90_624, "9.6.24"), (130_023, "13.23"), (139_999, "13.99")] {
            let reason = server(number, version).obstacle().unwrap();
            assert_eq!(
                reason,
                format!("postgresql {version} is too old: version 14 or later is needed")
            );
        }
        for (number, version) in [(140_000, "14.0"), (150_018, "15.18"), (180_004, "18.4")] {
            assert_eq!(server(number, version).obstacle(), None, "{version}");
        }
    }

    #[test]
    fn age_is_named_before_what_a_newer_server_would_have_too() {
        let old = Facts {
            encoding: "LATIN1".to_owned(),
            in_recovery: true,
            ..server(130_000, "13.0")
        };
        assert!(old.obstacle().unwrap().contains("too old"));
    }
}
