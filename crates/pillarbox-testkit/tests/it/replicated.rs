//! Two replicas of one table on ClickHouse 18.16, and the keeper between them.

mod doubt;
mod keeper;
mod replicas;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pillarbox_relay::sink::clickhouse::{ClickHouse as Sink, ClickHouseConfig, CreateOptions};
use pillarbox_testkit::oracle::{Oracle, read_clickhouse};
use pillarbox_testkit::proxy::Proxy;
use pillarbox_testkit::servers::{ClickHouse, Keeper, PgVersion, Postgres, Replicas, eventually};

use crate::scene::{PATIENCE, Running, SINK, Scene, TABLE};

/// The stage of the end-to-end tests, with a table that has two replicas.
struct Pair {
    scene: Scene,
    /// The second replica; the first one is the scene's server.
    two: ClickHouse,
    /// Between the first replica and the keeper.
    line: Proxy,
    keeper: Keeper,
}

impl Pair {
    /// The recommended table on both, made as `pillarbox sink create` makes it.
    async fn start() -> Result<Self> {
        let pair = Self::without_table().await?;
        let options = CreateOptions {
            replicated: true,
            cluster: Some(Replicas::CLUSTER.to_owned()),
            json: false,
        };
        let created = pair.sink()?.create(&options).await;
        created.with_context(|| format!("{}\n{}", pair.one().log_tail(), pair.two.log_tail()))?;
        pair.scene.register(SINK).await?;
        Ok(pair)
    }

    async fn without_table() -> Result<Self> {
        let (replicas, postgres) =
            tokio::try_join!(Replicas::start(), Postgres::start(PgVersion::V15))?;
        let Replicas {
            servers: [one, two],
            line,
            keeper,
        } = replicas;
        let scene = Scene::beside(postgres, one).await?;
        Ok(Self {
            scene,
            two,
            line,
            keeper,
        })
    }

    fn one(&self) -> &ClickHouse {
        &self.scene.clickhouse
    }

    /// The urls of both, as `CLICKHOUSE_URL` of a relay under test.
    fn urls(&self) -> Result<String> {
        let (one, two) = (
            self.one().url_with_credentials()?,
            self.two.url_with_credentials()?,
        );
        Ok(format!("{one},{two}"))
    }

    /// A sink that knows both.
    fn sink(&self) -> Result<Sink> {
        self.sink_at(&self.urls()?)
    }

    fn sink_at(&self, urls: &str) -> Result<Sink> {
        let mut config = ClickHouseConfig::new(String::new(), self.one().database(), TABLE);
        config.urls = urls.split(',').map(str::to_owned).collect();
        config.query_timeout = Duration::from_secs(5);
        Ok(Sink::new(config)?)
    }

    /// A relay that delivers to whichever replica answers.
    fn running(&self) -> Result<Running> {
        self.running_with(&[])
    }

    fn running_with(&self, variables: &[(&str, &str)]) -> Result<Running> {
        let urls = self.urls()?;
        let mut all = vec![
            ("CLICKHOUSE_URL", urls.as_str()),
            ("INSERT_TIMEOUT_MS", "3000"),
            ("QUERY_TIMEOUT_MS", "5000"),
            ("STOPPED_MS", "300"),
            // What piles up while a backoff lasts is a batch, not a hundred.
            ("MAX_ROWS", "1000"),
        ];
        all.extend(variables);
        self.scene.running_with(&all)
    }

    /// Waits until both replicas hold as many rows as events were committed, stops the relay and
    /// compares both with what was committed: each event once on each (INV-1, INV-2).
    async fn holds(&self, oracle: &Oracle, relay: Running) -> Result<()> {
        let published = oracle.published();
        for server in [self.one(), &self.two] {
            let sql = format!("select count() from {TABLE}");
            let arrived = eventually("all events to arrive", PATIENCE, || async {
                let count = server.query(&sql).await.unwrap_or_default();
                let count: u64 = count.trim().parse().unwrap_or(0);
                Ok((count >= published).then_some(()))
            });
            if let Err(error) = arrived.await {
                let held = self.held().await;
                bail!("{error:#}: {held} of {published}; {}", relay.log_tail());
            }
        }
        relay.stop().await?;
        let urls = self.urls()?;
        self.scene.drain_with(&[("CLICKHOUSE_URL", &urls)]).await?;
        self.hold_both(oracle).await
    }

    /// What each of them has, with the parts that the keeper knows of it, and what its queue waits for.
    async fn held(&self) -> String {
        let mut held = String::new();
        for server in [self.one(), &self.two] {
            let ask = async |sql: &str| match server.query(sql).await {
                Ok(text) => text.trim().replace('\n', " "),
                Err(error) => format!("{error:#}"),
            };
            let rows = ask(&format!("select count() from {TABLE}")).await;
            let parts = ask("select name, rows from system.parts where active format TSV").await;
            let path = ask("select replica_path from system.replicas").await;
            let known = format!("select name from system.zookeeper where path = '{path}/parts'");
            let known = ask(&known).await;
            let queue = ask("select type, new_part_name from system.replication_queue").await;
            held += &format!(
                "{rows} rows in the parts [{parts}], the keeper knows [{known}], the queue has [{queue}]; "
            );
        }
        held
    }

    /// Whether a server has parts of which it does not know yet whether they stay.
    async fn is_unsure(&self, server: &ClickHouse) -> Result<bool> {
        let sql = format!("select parts_to_check from system.replicas where table = '{TABLE}'");
        Ok(server.query(&sql).await?.trim() != "0")
    }

    /// Tells each server to check its parts now, as one tells an old one, which else does so when it likes.
    async fn check_parts(&self) -> Result<()> {
        let restart = format!("system restart replica {TABLE}");
        for server in [self.one(), &self.two] {
            eventually("the replica to know its parts", PATIENCE, || async {
                if !self.is_unsure(server).await? {
                    return Ok(Some(()));
                }
                // Fails while it has no session with the keeper.
                let _ = server.query(&restart).await;
                Ok(None)
            })
            .await?;
        }
        Ok(())
    }

    /// Both hold each event once.
    async fn hold_both(&self, oracle: &Oracle) -> Result<()> {
        self.check_parts().await?;
        for server in [self.one(), &self.two] {
            server
                .query(&format!("system sync replica {TABLE}"))
                .await?;
            let found = read_clickhouse(server, TABLE, self.scene.precision()).await?;
            let verdict = oracle.verdict(&found, &[]);
            ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
            ensure!(verdict.delivered == oracle.published(), "{verdict}");
        }
        Ok(())
    }
}
