//! Two servers of ClickHouse 18.16 that hold the replicas of one table, and the keeper between them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::clickhouse::ClickHouse;
use super::eventually;
use super::keeper::Keeper;
use super::place::Port;
use crate::proxy::Proxy;

/// Whether the first server's thread for `ON CLUSTER` has begun: it makes its queue.
const QUEUE: &str =
    "select count() from system.zookeeper where path = '/clickhouse/task_queue' and name = 'ddl'";

const QUEUE_WITHIN: Duration = Duration::from_secs(30);

/// Where a replica stands among the others.
#[derive(Debug)]
pub(super) struct Member {
    /// The value of the macro `{replica}`.
    pub(super) name: String,
    pub(super) keeper: u16,
    /// Other replicas fetch parts here.
    pub(super) interserver: Port,
    /// `ON CLUSTER` finds a server by this one.
    pub(super) native: Port,
    /// Of every replica, in order.
    pub(super) cluster: Vec<u16>,
}

/// Two replicas, named `one` and `two`, in the cluster [`Replicas::CLUSTER`].
#[derive(Debug)]
pub struct Replicas {
    // Declared in the order of their end.
    pub servers: [ClickHouse; 2],
    /// Between the first server and the keeper.
    pub line: Proxy,
    /// ZooKeeper.
    pub keeper: Keeper,
}

impl Replicas {
    /// The cluster of both, for `ON CLUSTER`.
    pub const CLUSTER: &str = "pair";

    /// Starts the keeper and both servers. Dropping the future ends them.
    pub async fn start() -> Result<Self> {
        let keeper = Keeper::start().await?;
        let line = Proxy::start(SocketAddr::from(([127, 0, 0, 1], keeper.port())))?;
        let (first, second) = (Port::lease()?, Port::lease()?);
        let cluster = vec![first.number, second.number];
        let member = |name: &str, keeper, native| -> Result<Member> {
            Ok(Member {
                name: name.to_owned(),
                keeper,
                interserver: Port::lease()?,
                native,
                cluster: cluster.clone(),
            })
        };
        let one = ClickHouse::start_replica(member("one", line.port(), first)?).await?;
        // 18.16 crashes when it is asked for `ON CLUSTER` before the thread for that has its session.
        eventually("the queue of ON CLUSTER", QUEUE_WITHIN, || async {
            let found = one.query(QUEUE).await.unwrap_or_default();
            Ok((found.trim() == "1").then_some(()))
        })
        .await?;
        let two = ClickHouse::start_replica(member("two", keeper.port(), second)?).await?;
        Ok(Self {
            servers: [one, two],
            line,
            keeper,
        })
    }

    /// The replica `one`.
    pub fn one(&self) -> &ClickHouse {
        &self.servers[0]
    }

    /// The replica `two`.
    pub fn two(&self) -> &ClickHouse {
        &self.servers[1]
    }
}

impl Member {
    /// What its configuration has beyond that of a single server.
    pub(super) fn config_xml(&self) -> String {
        let Self {
            name,
            keeper,
            interserver,
            native,
            cluster,
        } = self;
        let replicas: String = cluster
            .iter()
            .map(|port| {
                format!(
                    "<replica><host>127.0.0.1</host><port>{port}</port>\
                     <user>default</user><password>testkit</password></replica>"
                )
            })
            .collect();
        format!(
            "  <tcp_port>{}</tcp_port>
  <interserver_http_port>{}</interserver_http_port>
  <interserver_http_host>127.0.0.1</interserver_http_host>
  <zookeeper>
    <node><host>127.0.0.1</host><port>{keeper}</port></node>
    <session_timeout_ms>3000</session_timeout_ms>
    <operation_timeout_ms>3000</operation_timeout_ms>
  </zookeeper>
  <merge_tree>
    <zookeeper_session_expiration_check_period>1</zookeeper_session_expiration_check_period>
  </merge_tree>
  <macros><shard>1</shard><replica>{name}</replica></macros>
  <remote_servers><{pair}><shard>
    <internal_replication>true</internal_replication>{replicas}
  </shard></{pair}></remote_servers>
  <distributed_ddl><path>/clickhouse/task_queue/ddl</path></distributed_ddl>
",
            native.number,
            interserver.number,
            pair = Replicas::CLUSTER,
        )
    }
}
