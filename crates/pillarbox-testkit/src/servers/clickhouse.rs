//! ClickHouse in two flavours behind one type: Debian's old server, and the current engine
//! embedded in a small HTTP front (`chdb_front.py`).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::disk;
use super::place::{Place, Port};
use super::process::{Launch, Process};
use super::replicas::Member;
use super::tools::{installed, tools_dir};
use super::{START_DEADLINE, eventually};

const FRONT: &str = include_str!("chdb_front.py");

/// The one user of a started server and its password.
const USER: &str = "default";
const PASSWORD: &str = "testkit";

/// How long one request of [`ClickHouse::query`] may take.
const QUERY_DEADLINE: Duration = Duration::from_secs(60);

/// Which ClickHouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// 18.16, Debian's: a real server, no tokens, no DateTime64. `PILLARBOX_TEST_CLICKHOUSE18_URL`
    /// replaces it.
    V18,
    /// 26.9: the current engine (tokens, JSON, DateTime64), behind our HTTP front.
    /// `PILLARBOX_TEST_CLICKHOUSE_URL` replaces it by a real, current server.
    V26,
}

impl Flavour {
    /// Both, for tests that loop over them.
    pub const ALL: [Self; 2] = [Self::V18, Self::V26];

    fn url_variable(self) -> &'static str {
        match self {
            Self::V18 => "PILLARBOX_TEST_CLICKHOUSE18_URL",
            Self::V26 => "PILLARBOX_TEST_CLICKHOUSE_URL",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::V18 => "clickhouse 18.16",
            Self::V26 => "clickhouse 26.9",
        }
    }
}

/// A running ClickHouse. Dropping it ends the server and removes its directory.
#[derive(Debug)]
pub struct ClickHouse {
    flavour: Flavour,
    url: String,
    user: String,
    password: String,
    http: reqwest::Client,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    // Declared in the order of their end.
    process: Process,
    port: Port,
    /// Where `clickhouse-client` connects to a single server of 18.16.
    native: Option<Port>,
    place: Place,
    /// Its further ports, for as long as it may start again.
    member: Option<Member>,
}

/// A replica of 18.16 that was killed ends at about one start in fifty while it loads its tables, with
/// "Invalid argument"; the next start loads them.
const REPLICA_STARTS_MAX: u32 = 5;

impl Own {
    fn failed_to_load(&self, error: &anyhow::Error) -> bool {
        let ended = "exception while loading metadata: std::exception. Code: 1001";
        self.member.is_some() && self.process.id().is_none() && format!("{error:?}").contains(ended)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // 18.16 needs 2 s to end when asked, and nothing of it outlives its directory.
        self.process.end(None, Duration::ZERO);
    }
}

impl ClickHouse {
    /// Starts a server and waits until it answers. Dropping the future ends the server.
    pub async fn start(flavour: Flavour) -> Result<Self> {
        if let Ok(url) = std::env::var(flavour.url_variable()) {
            return Self::external(flavour, &url).await;
        }
        Self::launch(flavour, None, false).await
    }

    /// Starts a server whose disk can be filled. Dropping the future ends the server.
    pub async fn start_on_small_disk(flavour: Flavour) -> Result<Self> {
        Self::launch(flavour, None, true).await
    }

    /// Starts a server of 18.16 that is one of several replicas.
    pub(super) async fn start_replica(member: Member) -> Result<Self> {
        Self::launch(Flavour::V18, Some(member), false).await
    }

    async fn launch(flavour: Flavour, member: Option<Member>, is_small: bool) -> Result<Self> {
        let place = Place::create(None)?;
        let port = Port::lease()?;
        let native = match (flavour, &member) {
            (Flavour::V18, None) => Some(Port::lease()?),
            _ => None,
        };
        let mut launch = match flavour {
            Flavour::V18 => {
                let tcp = |native: &Port| format!("  <tcp_port>{}</tcp_port>\n", native.number);
                let more = member.as_ref().map(Member::config_xml);
                let more = more.or_else(|| native.as_ref().map(tcp));
                launch_18(&place, &port, &more.unwrap_or_default())?
            }
            Flavour::V26 => launch_26(&place, &port)?,
        };
        if is_small {
            launch = disk::with_small_disk(launch, &place.path().join("data"))?;
        }
        let url = format!("http://127.0.0.1:{}", port.number);
        let own = Own {
            process: Process::new(launch),
            port,
            native,
            place,
            member,
        };
        own.process.start()?;
        let server = Self {
            flavour,
            url,
            user: USER.to_owned(),
            password: PASSWORD.to_owned(),
            http: http_client()?,
            own: Some(own),
        };
        server.wait_ready().await?;
        Ok(server)
    }

    async fn external(flavour: Flavour, text: &str) -> Result<Self> {
        let variable = flavour.url_variable();
        let mut url = url::Url::parse(text).with_context(|| format!("the url in {variable}"))?;
        let user = if url.username().is_empty() {
            "default"
        } else {
            url.username()
        }
        .to_owned();
        let password = url.password().unwrap_or_default().to_owned();
        if url
            .set_username("")
            .and_then(|()| url.set_password(None))
            .is_err()
        {
            bail!("{variable} is not an http url");
        }
        let http = http_client()?;
        let url = url.as_str().trim_end_matches('/').to_owned();
        let server = Self {
            flavour,
            url,
            user,
            password,
            http,
            own: None,
        };
        server.wait_ready().await?;
        Ok(server)
    }

    /// Which flavour it is.
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// `http://127.0.0.1:PORT`, without user and password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The user to send.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The user's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The database that exists from the start.
    pub fn database(&self) -> &str {
        "default"
    }

    /// `http://USER:PASSWORD@127.0.0.1:PORT`, for tools that take one URL.
    pub fn url_with_credentials(&self) -> Result<String> {
        let mut url = url::Url::parse(&self.url)?;
        let set = url
            .set_username(&self.user)
            .and_then(|()| url.set_password(Some(&self.password)));
        if set.is_err() {
            bail!("the url takes no user: {}", self.url);
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }

    /// The HTTP port; an error for a server from the environment.
    pub fn port(&self) -> Result<u16> {
        Ok(self.own("naming the port")?.port.number)
    }

    /// The port for `clickhouse-client`; an error for all but a single server of 18.16.
    pub fn native_port(&self) -> Result<u16> {
        let native = &self.own("naming the native port")?.native;
        let native = native.as_ref();
        Ok(native
            .with_context(|| format!("{} has no native port", self.flavour.label()))?
            .number)
    }

    /// The id of the running process; none after a stop, a kill, or for a server from the
    /// environment.
    pub fn pid(&self) -> Option<u32> {
        self.own.as_ref()?.process.id()
    }

    /// Changes the `users.xml` of 18.16, which reads it again within seconds.
    ///
    /// # Errors
    /// When the file cannot be read or written, or the server is not of 18.16.
    pub fn change_users(&self, change: impl FnOnce(&str) -> String) -> Result<()> {
        let file = self.dir()?.join("users.xml");
        let users = change(&fs::read_to_string(&file)?);
        // The server compares the file's time by the second: each change gets one of its own.
        let written_at = fs::metadata(&file)?.modified()? + Duration::from_secs(1);
        let fresh = file.with_extension("new");
        fs::write(&fresh, users)?;
        let opened = fs::File::options().write(true).open(&fresh)?;
        opened.set_modified(written_at)?;
        Ok(fs::rename(&fresh, &file)?)
    }

    /// The directory of a started server: data, configuration and log.
    pub fn dir(&self) -> Result<PathBuf> {
        Ok(self.own("naming the directory")?.place.path().to_owned())
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        self.own
            .as_ref()
            .map(|own| own.process.log_tail())
            .unwrap_or_default()
    }

    /// Runs one statement over plain HTTP and gives the answer's text (TabSeparated unless the
    /// statement says otherwise). A server error is an error with the server's text.
    pub async fn query(&self, sql: &str) -> Result<String> {
        self.query_with(sql, &[]).await
    }

    /// The same with settings for this statement.
    pub async fn query_with(&self, sql: &str, settings: &[(&str, &str)]) -> Result<String> {
        let mut url = url::Url::parse(&self.url)?;
        url.query_pairs_mut().extend_pairs(settings);
        let request = self
            .http
            .post(url)
            .header("X-ClickHouse-User", &self.user)
            .header("X-ClickHouse-Key", &self.password)
            .timeout(QUERY_DEADLINE)
            .body(sql.to_owned());
        let answer = request
            .send()
            .await
            .with_context(|| format!("sending {sql}"))?;
        let (status, text) = (answer.status(), answer.text().await?);
        if !status.is_success() {
            bail!("{sql}: http {status}: {}", text.trim_end());
        }
        Ok(text)
    }

    /// Asks the server to end, and waits. 18.16 takes about 2 s.
    pub async fn stop(&self) -> Result<()> {
        self.own("stopping")?.process.stop(Signal::TERM).await?;
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&self) -> Result<()> {
        self.own("killing")?.process.kill()
    }

    /// Freezes the server (SIGSTOP): it accepts connections, and answers none.
    pub fn pause(&self) -> Result<()> {
        self.own("pausing")?.process.pause()
    }

    /// Ends a pause.
    pub fn resume(&self) -> Result<()> {
        self.own("resuming")?.process.resume()
    }

    /// Leaves no byte free on the disk of a server that was started on a small one.
    pub fn fill_disk(&self) -> Result<()> {
        let pid = self.pid().context("the server does not run")?;
        disk::fill(pid, &self.dir()?.join("data"))
    }

    /// Takes away what [`ClickHouse::fill_disk`] filled it with.
    pub fn free_disk(&self) -> Result<()> {
        let pid = self.pid().context("the server does not run")?;
        disk::free(pid, &self.dir()?.join("data"))
    }

    /// Starts again on the same port and data: after a stop or kill, or by stopping first.
    pub async fn restart(&self) -> Result<()> {
        let own = self.own("restarting")?;
        if own.process.id().is_some() {
            self.stop().await?;
        }
        let mut starts = 1;
        loop {
            own.process.start()?;
            match self.wait_ready().await {
                // As a service manager does.
                Err(error) if starts < REPLICA_STARTS_MAX && own.failed_to_load(&error) => {
                    starts += 1;
                }
                ready => return ready,
            }
        }
    }

    /// Waits until `/ping` answers; fails at once, with the log, if the server ended.
    pub async fn wait_ready(&self) -> Result<()> {
        let ping = format!("{}/ping", self.url.split('?').next().unwrap_or(&self.url));
        let what = format!("{} to answer {ping}", self.flavour.label());
        let ready = eventually(&what, START_DEADLINE, || async {
            if let Some(own) = &self.own {
                own.process.check_alive()?;
            }
            let request = self.http.get(&ping).timeout(Duration::from_secs(1));
            let answered = request
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success());
            Ok(answered.then_some(()))
        });
        ready.await.map_err(|error| match &self.own {
            Some(own) => error.context(own.process.log_tail()),
            None => error.context(format!("the server of {}", self.flavour.url_variable())),
        })
    }

    fn own(&self, what: &str) -> Result<&Own> {
        let Some(own) = &self.own else {
            let variable = self.flavour.url_variable();
            bail!("{what} is not possible with the server of {variable}; unset it");
        };
        Ok(own)
    }
}

fn launch_18(place: &Place, port: &Port, more: &str) -> Result<Launch> {
    let program = ["/usr/sbin/clickhouse-server", "/usr/bin/clickhouse-server"].map(PathBuf::from);
    let program = match program.iter().find(|path| path.exists()) {
        Some(path) => path.clone(),
        None => installed(Flavour::V18.label(), program[0].clone())?,
    };
    let dir = place.path();
    fs::create_dir(dir.join("data"))?;
    fs::write(dir.join("config.xml"), config_xml(dir, port.number, more))?;
    fs::write(dir.join("users.xml"), USERS_XML)?;
    Ok(Launch {
        name: format!("{} on port {}", Flavour::V18.label(), port.number),
        program,
        args: vec![format!(
            "--config-file={}",
            dir.join("config.xml").display()
        )],
        env: Vec::new(),
        run_as: None,
        log: dir.join("clickhouse.log"),
    })
}

fn launch_26(place: &Place, port: &Port) -> Result<Launch> {
    let python = installed(
        "chdb-core (clickhouse 26.9)",
        tools_dir().join("venv/bin/python"),
    )?;
    let dir = place.path();
    let front = dir.join("chdb_front.py");
    fs::write(&front, FRONT)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number));
    let data = dir.join("data");
    Ok(Launch {
        name: format!("{} on port {}", Flavour::V26.label(), port.number),
        program: python,
        args: vec![
            "-u".to_owned(),
            front.display().to_string(),
            address.to_string(),
            data.display().to_string(),
        ],
        env: vec![
            ("FRONT_USER".to_owned(), USER.to_owned()),
            ("FRONT_PASSWORD".to_owned(), PASSWORD.to_owned()),
            ("TZ".to_owned(), "UTC".to_owned()),
        ],
        run_as: None,
        log: dir.join("clickhouse.log"),
    })
}

fn config_xml(dir: &Path, port: u16, more: &str) -> String {
    let dir = dir.display();
    format!(
        "<yandex>
  <logger><level>information</level><console>1</console></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{port}</http_port>
  <keep_alive_timeout>3</keep_alive_timeout>
  <path>{dir}/data/</path>
  <tmp_path>{dir}/data/tmp/</tmp_path>
  <user_files_path>{dir}/data/user_files/</user_files_path>
  <format_schema_path>{dir}/data/format_schemas/</format_schema_path>
  <users_config>users.xml</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <timezone>UTC</timezone>
  <mark_cache_size>67108864</mark_cache_size>
{more}</yandex>
"
    )
}

const USERS_XML: &str = "<yandex>
  <profiles><default></default></profiles>
  <quotas><default></default></quotas>
  <users>
    <default>
      <password>testkit</password>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </default>
  </users>
</yandex>
";

/// Keeps no connection: 18.16 closes idle ones after seconds, and a request may meet that.
fn http_client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .build()?)
}
