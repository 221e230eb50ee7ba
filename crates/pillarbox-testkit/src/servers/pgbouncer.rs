//! PgBouncer in front of a PostgreSQL, as applications often have it.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::place::{Place, Port};
use super::process::{Launch, Process};
use super::tools::{installed, unprivileged};
use super::{Postgres, START_DEADLINE, eventually};

/// When a server connection goes back into the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// After each transaction.
    Transaction,
    /// When the client leaves.
    Session,
}

/// A running PgBouncer, whose server connections are those of one user. Dropping it ends it.
#[derive(Debug)]
pub struct PgBouncer {
    // Declared in the order of their end.
    process: Process,
    port: Port,
    _place: Place,
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.process.end(None, std::time::Duration::ZERO);
    }
}

impl PgBouncer {
    /// Starts one with up to `connections` server connections per database, as `user` of `postgres`.
    /// Every client is let in, under any name.
    pub async fn start(
        postgres: &Postgres,
        mode: PoolMode,
        connections: u32,
        user: &str,
    ) -> Result<Self> {
        let program = installed("pgbouncer", PathBuf::from("/usr/sbin/pgbouncer"))?;
        // It refuses to run as root.
        let run_as = unprivileged()?;
        let place = Place::create(run_as)?;
        let port = Port::lease()?;
        let mode = match mode {
            PoolMode::Transaction => "transaction",
            PoolMode::Session => "session",
        };
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={user}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\nauth_type = any\n\
             ignore_startup_parameters = extra_float_digits\npool_mode = {mode}\n\
             max_client_conn = 1000\ndefault_pool_size = {connections}\n",
            postgres.port()?,
            port.number
        );
        let file = place.path().join("pgbouncer.ini");
        fs::write(&file, configuration)?;
        let process = Process::new(Launch {
            name: format!("pgbouncer on port {}", port.number),
            program,
            args: vec![file.display().to_string()],
            env: Vec::new(),
            run_as,
            log: place.path().join("pgbouncer.log"),
        });
        process.start()?;
        let bouncer = Self {
            process,
            port,
            _place: place,
        };
        let number = bouncer.port.number;
        let ready = eventually("pgbouncer to answer", START_DEADLINE, || async {
            bouncer.process.check_alive()?;
            let connected = tokio::net::TcpStream::connect(("127.0.0.1", number)).await;
            Ok(connected.ok().map(drop))
        });
        ready.await?;
        Ok(bouncer)
    }

    /// `postgresql://postgres@127.0.0.1:PORT/DATABASE`.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgresql://postgres@127.0.0.1:{}/{database}",
            self.port.number
        )
    }
}
