//! PostgreSQL: a cluster per value, in a directory of its own.

mod clock;
mod copies;
mod standby;
mod template;

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

use super::place::{Place, Port};
use super::process::{Launch, Process};
use super::tools::{RunAs, unprivileged};
use super::{START_DEADLINE, eventually};

pub use copies::{Dump, Files};

/// Replaces every started PostgreSQL by the server at this URL.
const URL_VARIABLE: &str = "PILLARBOX_TEST_POSTGRES_URL";

/// How long an immediate shutdown may take in `Drop`; it frees shared memory, SIGKILL does not.
const DROP_GRACE: Duration = Duration::from_secs(3);

/// A major version of PostgreSQL. 15 is Debian's, the others come from npm; `make setup` installs
/// 15 and 18, and more if `PILLARBOX_SETUP_POSTGRES` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PgVersion {
    V15,
    V16,
    V17,
    V18,
}

impl PgVersion {
    /// The major version as a number.
    pub fn number(self) -> u32 {
        match self {
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }
}

/// How a PostgreSQL is to be started; see [`Postgres::builder`].
#[derive(Debug, Clone)]
pub struct PostgresBuilder {
    version: PgVersion,
    encoding: String,
    durable: bool,
    own_identifier: bool,
    password_method: Option<String>,
    has_own_clock: bool,
    disk_bytes: Option<u64>,
    settings: Vec<(String, String)>,
}

impl PostgresBuilder {
    /// The version; 15 unless set.
    pub fn version(mut self, version: PgVersion) -> Self {
        self.version = version;
        self
    }

    /// The encoding of the databases; UTF8 (locale C.UTF-8) unless set. Others get locale C.
    pub fn encoding(mut self, encoding: &str) -> Self {
        self.encoding = encoding.to_owned();
        self
    }

    /// `fsync` and `full_page_writes` on, as in production: for crash tests.
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// A `system_identifier` of its own, by a fresh `initdb` (0.7 s): for tests that compare two
    /// clusters. Without it clusters of the same version share one.
    pub fn own_identifier(mut self) -> Self {
        self.own_identifier = true;
        self
    }

    /// Asks every TCP user but `postgres` for a password by this method of `pg_hba.conf`
    /// (such as `scram-sha-256`). Without it everybody is trusted.
    pub fn password_method(mut self, method: &str) -> Self {
        self.password_method = Some(method.to_owned());
        self
    }

    /// A clock of its own, which [`Postgres::shift_clock`] sets (by Debian's libfaketime).
    pub fn own_clock(mut self) -> Self {
        self.has_own_clock = true;
        self
    }

    /// A disk of its own of so many bytes for data and WAL, which can be filled. Needs root.
    pub fn disk(mut self, bytes: u64) -> Self {
        self.disk_bytes = Some(bytes);
        self
    }

    /// A setting of `postgresql.conf`; later ones win, also over the defaults.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the server and waits until it answers. Dropping the future ends the server.
    pub async fn start(self) -> Result<Postgres> {
        if let Ok(url) = std::env::var(URL_VARIABLE) {
            let postgres = Postgres { url, own: None };
            postgres.wait_ready().await?;
            return Ok(postgres);
        }
        let user = unprivileged()?;
        let place = Place::create(user)?;
        let data = match self.disk_bytes {
            // The data directory is made by the copy.
            Some(bytes) => place.mount("disk", bytes, user)?.join("data"),
            None => place.path().join("data"),
        };
        if self.own_identifier {
            template::init(self.version, &self.encoding, user, &data).await?;
        } else {
            template::copy_template(self.version, &self.encoding, user, &data).await?;
        }
        if let Some(method) = &self.password_method {
            write_hba(&data, method)?;
        }
        let port = Port::lease()?;
        let mut settings = default_settings(self.durable);
        settings.extend(self.settings);
        append_settings(&data, place.path(), &port, &settings)?;
        if self.disk_bytes.is_some() {
            std::os::unix::fs::symlink(&data, place.path().join("data"))?;
        }
        let env = match self.has_own_clock {
            true => clock::environment(place.path())?,
            false => Vec::new(),
        };
        Postgres::launch(self.version, user, place, port, env).await
    }
}

/// A running PostgreSQL. Dropping it ends the server and removes its directory.
#[derive(Debug)]
pub struct Postgres {
    url: String,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    // Declared in the order of their end.
    process: Process,
    version: PgVersion,
    user: Option<RunAs>,
    port: Port,
    place: Place,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.process.end(Some(Signal::QUIT), DROP_GRACE);
    }
}

impl Postgres {
    /// Version 15, UTF8, everybody trusted, `fsync` off, 200 connections, 20 prepared
    /// transactions: what a test wants unless it says otherwise.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder {
            version: PgVersion::V15,
            encoding: "UTF8".to_owned(),
            durable: false,
            own_identifier: false,
            password_method: None,
            has_own_clock: false,
            disk_bytes: None,
            settings: Vec::new(),
        }
    }

    /// Starts a server of the given version with the defaults.
    pub async fn start(version: PgVersion) -> Result<Self> {
        Self::builder().version(version).start().await
    }

    async fn launch(
        version: PgVersion,
        user: Option<RunAs>,
        place: Place,
        port: Port,
        env: Vec<String>,
    ) -> Result<Self> {
        let program = template::bin_dir(version)?.join("postgres");
        let data = place.path().join("data").display().to_string();
        let args = ["-D".to_owned(), data];
        // By `env`, which sets them for the server and not for what starts it as another user.
        let (program, args) = match env.is_empty() {
            true => (program, args.to_vec()),
            false => {
                let program = [program.display().to_string()];
                let all = env.into_iter().chain(program).chain(args);
                (PathBuf::from("/usr/bin/env"), all.collect())
            }
        };
        let process = Process::new(Launch {
            name: format!("postgresql {} on port {}", version.number(), port.number),
            program,
            args,
            env: Vec::new(),
            run_as: user,
            log: place.path().join("postgresql.log"),
        });
        let url = format!("postgresql://postgres@127.0.0.1:{}/postgres", port.number);
        let own = Own {
            process,
            version,
            user,
            port,
            place,
        };
        own.process.start()?;
        let postgres = Self {
            url,
            own: Some(own),
        };
        postgres.wait_ready().await?;
        Ok(postgres)
    }

    /// `postgresql://postgres@127.0.0.1:PORT/postgres`: the superuser in the first database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of a database for a user. The parts are percent-encoded here.
    pub fn url_for(&self, database: &str, user: &str, password: Option<&str>) -> Result<String> {
        let mut url = url::Url::parse(&self.url).context("the url of the server")?;
        url.set_path(database);
        let set = url
            .set_username(user)
            .and_then(|()| url.set_password(password));
        if set.is_err() {
            bail!("the url of the server takes no user: {}", self.url);
        }
        Ok(url.into())
    }

    /// Works on another database of the same server from now on.
    #[must_use]
    pub fn in_database(mut self, name: &str) -> Self {
        if let Ok(url) = self.url_for(name, "postgres", None) {
            self.url = url;
        }
        self
    }

    /// The port on 127.0.0.1; an error for a server from the environment.
    pub fn port(&self) -> Result<u16> {
        Ok(self.own("naming the port")?.port.number)
    }

    /// The id of the running postmaster; none after a stop, a kill, or for a server from the
    /// environment.
    pub fn pid(&self) -> Option<u32> {
        self.own.as_ref()?.process.id()
    }

    /// The data directory; an error for a server from the environment.
    pub fn data_dir(&self) -> Result<PathBuf> {
        Ok(self
            .own("naming the data directory")?
            .place
            .path()
            .join("data"))
    }

    /// Sets the server's own clock so many seconds ahead of (or, negative, behind) the machine's.
    pub fn shift_clock(&self, seconds: i64) -> Result<()> {
        clock::shift(self.own("setting the clock")?.place.path(), seconds)
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        self.own
            .as_ref()
            .map(|own| own.process.log_tail())
            .unwrap_or_default()
    }

    /// A session as superuser in the first database. Its connection runs as a task of the
    /// current runtime until the client is dropped or the server ends.
    pub async fn connect(&self) -> Result<Client> {
        connect_url(&self.url).await
    }

    /// A session with another database, user or password.
    pub async fn connect_as(
        &self,
        database: &str,
        user: &str,
        password: Option<&str>,
    ) -> Result<Client> {
        connect_url(&self.url_for(database, user, password)?).await
    }

    /// Runs statements as superuser on a session of their own.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let client = self.connect().await?;
        client
            .batch_execute(sql)
            .await
            .with_context(|| format!("running {sql}"))
    }

    /// Runs a query as superuser on a session of its own.
    pub async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let client = self.connect().await?;
        client
            .query(sql, params)
            .await
            .with_context(|| format!("running {sql}"))
    }

    /// Makes an empty database and gives its URL for the superuser.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        self.execute(&format!("create database {quoted}")).await?;
        self.url_for(name, "postgres", None)
    }

    /// Stops as `pg_ctl stop -m fast` does: sessions end, a checkpoint is written.
    pub async fn stop(&self) -> Result<()> {
        self.own("stopping")?.process.stop(Signal::INT).await?;
        Ok(())
    }

    /// Stops as `pg_ctl stop -m immediate` does: sessions are cut, the next start recovers.
    pub async fn abort(&self) -> Result<()> {
        self.own("aborting")?.process.stop(Signal::QUIT).await?;
        Ok(())
    }

    /// `kill -9` of the server and all its backends. What was not in the kernel is gone.
    pub fn kill(&self) -> Result<()> {
        self.own("killing")?.process.kill()
    }

    /// Freezes the server and its backends (SIGSTOP): connections stay open, nothing answers.
    pub fn pause(&self) -> Result<()> {
        self.own("pausing")?.process.pause()
    }

    /// Ends a pause.
    pub fn resume(&self) -> Result<()> {
        self.own("resuming")?.process.resume()
    }

    /// Starts again on the same port and data: after a stop or kill, or by stopping first.
    pub async fn restart(&self) -> Result<()> {
        let own = self.own("restarting")?;
        if own.process.id().is_some() {
            self.stop().await?;
        }
        own.process.start()?;
        self.wait_ready().await
    }

    /// Waits until the server takes connections; fails at once, with the log, if it ended.
    pub async fn wait_ready(&self) -> Result<()> {
        let Some(own) = &self.own else {
            let connected = connect_url(&self.url).await;
            return connected
                .map(drop)
                .with_context(|| format!("the server of {URL_VARIABLE}"));
        };
        let file = own.place.path().join("data/postmaster.pid");
        let what = format!("{} to take connections", own.process.name());
        let ready = eventually(&what, START_DEADLINE, || async {
            own.process.check_alive()?;
            let text = fs::read_to_string(&file).unwrap_or_default();
            Ok(is_ready(&text, own.process.id()).then_some(()))
        });
        ready
            .await
            .map_err(|error| error.context(own.process.log_tail()))
    }

    fn own(&self, what: &str) -> Result<&Own> {
        let Some(own) = &self.own else {
            bail!("{what} is not possible with the server of {URL_VARIABLE}; unset it");
        };
        Ok(own)
    }
}

/// Reads `postmaster.pid` as `pg_ctl` does: line 1 is the process, line 8 its status.
fn is_ready(pid_file: &str, pid: Option<u32>) -> bool {
    let mut lines = pid_file.lines();
    let same = lines.next().and_then(|line| line.trim().parse().ok()) == pid;
    same && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}

async fn connect_url(url: &str) -> Result<Client> {
    let connecting = tokio_postgres::connect(url, NoTls);
    let connected = tokio::time::timeout(START_DEADLINE, connecting).await;
    let (client, connection) = connected
        .with_context(|| format!("postgresql did not answer within {START_DEADLINE:?}"))?
        .context("connecting to postgresql")?;
    // It ends with the client; its error also reaches the client's next statement.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

fn default_settings(durable: bool) -> Vec<(String, String)> {
    let switch = if durable { "on" } else { "off" };
    [
        ("listen_addresses", "127.0.0.1"),
        ("max_connections", "200"),
        ("max_prepared_transactions", "20"),
        ("fsync", switch),
        ("full_page_writes", switch),
        ("shared_buffers", "64MB"),
        // A standby may fall behind by this much.
        ("wal_keep_size", "256MB"),
        ("log_line_prefix", "%m [%p] %u %a "),
        ("timezone", "UTC"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Appends to `postgresql.conf`, where the last value of a setting wins.
fn append_settings(
    data: &Path,
    place: &Path,
    port: &Port,
    settings: &[(String, String)],
) -> Result<()> {
    let path = data.join("postgresql.conf");
    let mut text = fs::read_to_string(&path)?;
    let mut line = |name: &str, value: &str| {
        text.push_str(&format!("\n{name} = '{}'", value.replace('\'', "''")));
    };
    for (name, value) in settings {
        line(name, value);
    }
    line("port", &port.number.to_string());
    line("unix_socket_directories", &place.display().to_string());
    text.push('\n');
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn write_hba(data: &Path, method: &str) -> Result<()> {
    let text = format!(
        "local all all trust\n\
         host all postgres 127.0.0.1/32 trust\n\
         host replication postgres 127.0.0.1/32 trust\n\
         host all all 127.0.0.1/32 {method}\n"
    );
    let path = data.join("pg_hba.conf");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// Gives a file made by us to the user that the server runs as.
fn give_to(user: Option<RunAs>, path: &Path) -> Result<()> {
    let Some(user) = user else { return Ok(()) };
    chown(path, Some(user.uid), Some(user.gid))
        .with_context(|| format!("changing the owner of {}", path.display()))
}
