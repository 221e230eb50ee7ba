//! Real servers for tests and demos in other languages.
//!
//! `servers postgres clickhouse redis` starts what is named, prints where as one line of JSON, and
//! stops everything when its standard input ends: with the process that started it, however that
//! ends. `postgres` is a database with the schema installed, on a server where everybody is trusted.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use pillarbox_relay::schema;
use pillarbox_testkit::servers::{
    ClickHouse, Flavour, Persistence, PgBouncer, PgVersion, PoolMode, Postgres, Redis,
};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

const USAGE: &str = "name servers: postgres, postgres18, clickhouse18, clickhouse (26.9), redis, pgbouncer \
     (after a postgres)";

/// The database that has the schema.
const DATABASE: &str = "outbox";

/// Server connections of the pooler for each database.
const POOL: u32 = 4;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("servers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// When it returns, every server has ended.
async fn run() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        served = serve() => served,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn serve() -> Result<()> {
    let mut servers = Servers::default();
    for name in std::env::args().skip(1) {
        servers.start(&name).await?;
    }
    if servers.urls.is_empty() {
        bail!("{USAGE}");
    }
    println!("{}", Value::Object(std::mem::take(&mut servers.urls)));
    input_ended().await;
    Ok(())
}

/// Whoever started us writes nothing: the end of the input is the end of that process. A thread of its
/// own reads, because the runtime would wait for one of its own when a signal comes first.
async fn input_ended() {
    let (ended, wait) = oneshot::channel();
    std::thread::spawn(move || {
        // An error is an end, too.
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    let _ = wait.await;
}

/// What runs, in the order of its end.
#[derive(Default)]
struct Servers {
    bouncers: Vec<PgBouncer>,
    redis: Vec<Redis>,
    clickhouse: Vec<ClickHouse>,
    postgres: Vec<Postgres>,
    urls: Map<String, Value>,
}

impl Servers {
    async fn start(&mut self, name: &str) -> Result<()> {
        let url = match name {
            "postgres" => self.postgres(PgVersion::V15).await?,
            "postgres18" => self.postgres(PgVersion::V18).await?,
            "clickhouse" => self.clickhouse(Flavour::V26).await?,
            "clickhouse18" => self.clickhouse(Flavour::V18).await?,
            "redis" => {
                let redis = Redis::start(Persistence::AppendEverySecond).await?;
                let url = format!("redis://127.0.0.1:{}/0", redis.port());
                self.redis.push(redis);
                url
            }
            "pgbouncer" => {
                let Some(postgres) = self.postgres.last() else {
                    bail!("{USAGE}");
                };
                let bouncer = PgBouncer::start(postgres, PoolMode::Transaction, POOL, "postgres");
                let bouncer = bouncer.await?;
                let url = bouncer.url(DATABASE);
                self.bouncers.push(bouncer);
                url
            }
            _ => bail!("no server is called {name:?}; {USAGE}"),
        };
        self.urls.insert(name.to_owned(), json!(url));
        Ok(())
    }

    async fn postgres(&mut self, version: PgVersion) -> Result<String> {
        let postgres = Postgres::start(version).await?;
        let url = postgres.create_database(DATABASE).await?;
        let mut client = postgres.connect_as(DATABASE, "postgres", None).await?;
        schema::migrate(&mut client).await?;
        self.postgres.push(postgres);
        Ok(url)
    }

    async fn clickhouse(&mut self, flavour: Flavour) -> Result<String> {
        let clickhouse = ClickHouse::start(flavour).await?;
        let url = format!(
            "{}/{}",
            clickhouse.url_with_credentials()?,
            clickhouse.database()
        );
        self.clickhouse.push(clickhouse);
        Ok(url)
    }
}
