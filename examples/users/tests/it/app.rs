//! A database with an outbox, and the application running on it.

use std::net::SocketAddr;

use pillarbox_testkit::servers::{PgVersion, Postgres};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_postgres::Client;
use users::{Config, Server};

pub(crate) struct Database {
    postgres: Postgres,
    name: String,
    pub(crate) admin: Client,
}

impl Database {
    pub(crate) async fn start() -> Self {
        let database = Self::without_outbox().await;
        let mut client = database.connect().await;
        pillarbox_relay::schema::migrate(&mut client).await.unwrap();
        database
    }

    pub(crate) async fn without_outbox() -> Self {
        let postgres = Postgres::start(PgVersion::V15).await.unwrap();
        let name = format!("users_{}", pillarbox::Uuid::now_v7().simple());
        postgres.create_database(&name).await.unwrap();
        let admin = postgres.connect_as(&name, "postgres", None).await.unwrap();
        Self {
            postgres,
            name,
            admin,
        }
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            database_url: self.postgres.url_for(&self.name, "postgres", None).unwrap(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            fail_rate: 0.0,
        }
    }

    pub(crate) async fn connect(&self) -> Client {
        self.postgres
            .connect_as(&self.name, "postgres", None)
            .await
            .unwrap()
    }

    pub(crate) async fn users(&self) -> i64 {
        let row = self
            .admin
            .query_one("select count(*) from public.users", &[])
            .await
            .unwrap();
        row.get(0)
    }

    /// Type and context of all events.
    pub(crate) async fn events(&self) -> Vec<(String, String)> {
        let sql = "select event_type, event_context::text from pillarbox.event order by tx, id";
        let rows = self.admin.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Whether a session waits for another one's transaction.
    pub(crate) async fn somebody_waits(&self) -> bool {
        let sql = "select exists (select from pg_locks where not granted)";
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }
}

/// The application in this process.
pub(crate) struct App {
    pub(crate) http: Http,
    stop: Option<oneshot::Sender<()>>,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl App {
    pub(crate) async fn start(config: &Config) -> Self {
        let server = Server::start(config).await.unwrap();
        let http = Http::new(format!("http://{}", server.address().unwrap()));
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Self {
            http,
            stop: Some(stop),
            serving,
        }
    }

    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        self.serving.await.unwrap().unwrap();
    }
}

#[derive(Clone)]
pub(crate) struct Http {
    base: String,
    client: reqwest::Client,
}

impl Http {
    pub(crate) fn new(base: String) -> Self {
        Self {
            base,
            client: reqwest::Client::new(),
        }
    }

    pub(crate) async fn create(&self, email: &str) -> (u16, Value) {
        self.post(&user(email)).await
    }

    pub(crate) async fn post(&self, body: &Value) -> (u16, Value) {
        let request = self.client.post(format!("{}/users", self.base)).json(body);
        answer(request.send().await.unwrap()).await
    }

    pub(crate) async fn post_text(&self, body: &'static str) -> (u16, Value) {
        let request = self.client.post(format!("{}/users", self.base));
        let request = request
            .header("content-type", "application/json")
            .body(body);
        answer(request.send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        answer(
            self.client
                .get(format!("{}{path}", self.base))
                .send()
                .await
                .unwrap(),
        )
        .await
    }
}

pub(crate) fn user(email: &str) -> Value {
    json!({ "email": email, "first_name": "Ada", "last_name": "Lovelace" })
}

async fn answer(response: reqwest::Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.unwrap())
}
