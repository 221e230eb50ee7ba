//! PostgreSQL itself: reached, directly, of a version and encoding that will do, with the schema.

use pillarbox_relay::postgres::pooler::{self, Pooler};
use pillarbox_relay::postgres::{self, ConnectError, Session, check_server};
use pillarbox_relay::schema::{self, SchemaError};

use super::finding::{Finding, Findings, Remedy};
use crate::APPLICATION_NAME;
use crate::exit::Failure;

/// What came of reaching PostgreSQL.
pub(super) struct Met {
    pub(super) session: Option<Session>,
    pub(super) has_schema: bool,
    pub(super) findings: Vec<Finding>,
}

/// Opens a session, unless a pooler would keep our settings, and looks at the server.
pub(super) async fn meet(target: &tokio_postgres::Config) -> Met {
    let mut findings = Findings::of("postgresql");
    let session = open(target, &mut findings).await;
    let mut has_schema = false;
    if let Some(session) = &session {
        has_schema = look(session, &mut findings).await;
    }
    Met {
        session,
        has_schema,
        findings: findings.list,
    }
}

async fn open(target: &tokio_postgres::Config, findings: &mut Findings) -> Option<Session> {
    match pooler::find(target, APPLICATION_NAME).await {
        Err(error) => {
            refused(findings, error);
            return None;
        }
        Ok(Some(pooler)) => {
            let what = match pooler {
                Pooler::Transaction => {
                    "gives server connections to others between two transactions, so that a relay's \
                     lock is worth nothing"
                }
                Pooler::Session => {
                    "gives out server connections that others had before; what it does between two \
                     transactions was not seen"
                }
            };
            let message =
                format!("a connection pooler {what}; postgresql is not looked at through it");
            findings.problem("connection", message, Remedy::person(pooler::REMEDY));
            return None;
        }
        Ok(None) => {}
    }
    match postgres::connect(target, APPLICATION_NAME).await {
        Ok(session) => {
            findings.ok("connection", "reached directly, not through a pooler");
            Some(session)
        }
        Err(error) => {
            refused(findings, error);
            None
        }
    }
}

fn refused(findings: &mut Findings, error: ConnectError) {
    findings.failed("connection", &Failure::from(error), None);
}

/// Whether the schema is there and ours.
async fn look(session: &Session, findings: &mut Findings) -> bool {
    const SERVER: &str = include_str!("sql/server.sql");
    let client = session.client();
    match check_server(client).await {
        Err(error) => findings.failed("server", &Failure::from(error), None),
        Ok(()) => match client.query_one(SERVER, &[]).await {
            Err(error) => findings.failed("server", &error.into(), None),
            Ok(row) => {
                let [version, database, user]: [String; 3] = [row.get(0), row.get(1), row.get(2)];
                findings.ok(
                    "server",
                    format!("{version}, UTF8, a primary; database {database}, user {user}"),
                );
            }
        },
    }
    let known = schema::VERSION;
    let migrate = || Remedy::shell("pillarbox migrate");
    match schema::installed_version(client).await {
        Ok(found) if found == known => {
            findings.ok(
                "schema",
                format!("the schema pillarbox has version {found}"),
            );
            true
        }
        Ok(found) if found < known => {
            let message = format!(
                "the schema pillarbox has version {found}, this program works with version {known}"
            );
            findings.problem("schema", message, migrate());
            false
        }
        Ok(found) => {
            let newer = Failure::from(SchemaError::Newer { found });
            findings.failed("schema", &newer, None);
            false
        }
        Err(SchemaError::Missing) => {
            let message = "the schema pillarbox is not installed in this database";
            findings.problem("schema", message, migrate());
            false
        }
        // Whoever may not read the version may still read the catalogs.
        Err(SchemaError::Rights { .. }) => true,
        Err(error) => {
            findings.failed("schema", &Failure::from(error), None);
            false
        }
    }
}
