//! HTTP to ClickHouse: one statement or one insert at a time, on the first replica that takes it.
//!
//! The official crate sends our bytes too, but it hides the status, the server's name and how much of
//! a body had left, and its insert runs on in a task of its own when its future is dropped. *Unknown*
//! hangs on exactly that, so the request is made here, on `hyper`. Dropping a future closes the
//! connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use url::Url;

use super::answer::{Answer, Cause, Fault, Strange};
use super::code;
use super::config::{ClickHouseConfig, Compression, without_secrets};
use super::connector::Connector;
use super::payload::{HeldUp, Leave, Meter, Payload, Sent};
use super::settings;
use super::verdict::may_have_written;
use crate::body::Body;

/// A result larger than this is a mistake of ours.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Speaks HTTP with the replicas of one table.
#[derive(Debug)]
pub(super) struct Client {
    http: HyperClient<HttpsConnector<Connector>, Payload>,
    endpoints: Vec<Endpoint>,
    /// The replica that answered last.
    preferred: AtomicUsize,
    user: String,
    password: SecretString,
    compression: Compression,
    /// TLS included.
    connect_timeout: Duration,
    insert_timeout: Duration,
    query_timeout: Duration,
    /// Settings of every statement but inserts, as far as the server is known to know them.
    pins: RwLock<Vec<Parameter>>,
}

/// Name and value of a parameter that does not change.
type Parameter = (&'static str, &'static str);

/// The whole result before the first byte: a failure has its own status then.
const QUERY_PARAMETERS: [Parameter; 2] = [
    ("wait_end_of_query", "1"),
    ("output_format_json_quote_64bit_integers", "1"),
];

/// One replica.
#[derive(Clone, Debug)]
struct Endpoint {
    url: Url,
    name: String,
}

/// A success.
#[derive(Debug)]
pub(super) struct Success {
    /// The server, by the name it gives itself or by its address.
    pub(super) server: String,
    pub(super) body: Bytes,
}

impl Client {
    /// # Errors
    /// When an address is not one, or TLS cannot be set up.
    pub(super) fn new(config: &ClickHouseConfig) -> Result<Self, String> {
        if config.urls.is_empty() {
            return Err(
                "the clickhouse sink has no url; set CLICKHOUSE_URL or sink.urls".to_owned(),
            );
        }
        let mut user = config.user.clone();
        let mut password = config.password.clone();
        let mut endpoints = Vec::new();
        for text in &config.urls {
            let name = without_secrets(text);
            let mut url =
                Url::parse(text).map_err(|error| format!("clickhouse url {name}: {error}"))?;
            if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
                return Err(format!(
                    "clickhouse url {name} is not an http or https address"
                ));
            }
            if !url.username().is_empty() {
                user = decoded(url.username());
                password = SecretString::from(decoded(url.password().unwrap_or_default()));
            }
            // Neither can fail on an address with a host.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_path("/");
            url.set_query(None);
            endpoints.push(Endpoint { url, name });
        }
        Ok(Self {
            http: http_client(config.connect_timeout)?,
            endpoints,
            preferred: AtomicUsize::new(0),
            user,
            password,
            compression: config.compression,
            connect_timeout: config.connect_timeout,
            insert_timeout: config.insert_timeout,
            query_timeout: config.query_timeout,
            pins: RwLock::default(),
        })
    }

    pub(super) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// The `index`-th replica, as the configuration names it.
    pub(super) fn name(&self, index: usize) -> &str {
        &self.endpoints[index].name
    }

    /// The limit of a statement that is no insert.
    pub(super) fn query_timeout(&self) -> Duration {
        self.query_timeout
    }

    /// Every replica, the one first that answered last.
    pub(super) fn in_order(&self) -> Vec<usize> {
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.endpoints());
        (0..count).map(|turn| (first + turn) % count).collect()
    }

    /// Sends `body` as the data of `statement`, unless its first byte would leave after `begins_by`.
    /// Without a token, a replica that may have written it does not hand it over to the next.
    pub(super) async fn insert(
        &self,
        statement: &str,
        parameters: &[(&str, &str)],
        body: &Body,
        begins_by: Instant,
    ) -> Result<Success, Fault> {
        let mut query = parameters.to_vec();
        let has_token = query.iter().any(|(name, _)| *name == settings::TOKEN);
        query.push(("query", statement));
        let exchange = Exchange {
            query: &query,
            body,
            timeout: self.insert_timeout,
            begins_by: Some(begins_by),
            is_insert: true,
            is_read: false,
            may_repeat: has_token,
        };
        self.in_turn(&exchange).await
    }

    /// Runs a statement on the first replica that answers.
    pub(super) async fn query(&self, statement: &str) -> Result<Success, Fault> {
        let body = body_of(statement);
        let parameters = self.query_parameters();
        self.in_turn(&self.statement(&parameters, &body, statement))
            .await
    }

    /// Runs a statement on the `index`-th replica.
    pub(super) async fn query_at(&self, index: usize, statement: &str) -> Result<Success, Fault> {
        self.query_within(index, statement, &[], self.query_timeout)
            .await
    }

    /// Runs a statement with further settings on the `index`-th replica, which has so long to answer.
    pub(super) async fn query_within(
        &self,
        index: usize,
        statement: &str,
        settings: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<Success, Fault> {
        let body = body_of(statement);
        let pinned = self.query_parameters();
        let parameters: Vec<_> = pinned.iter().chain(settings).copied().collect();
        let exchange = Exchange {
            timeout,
            ..self.statement(&parameters, &body, statement)
        };
        self.on(&self.endpoints[index], &exchange).await
    }

    /// Runs a statement and reads its result row by row.
    pub(super) async fn rows<T: serde::de::DeserializeOwned>(
        &self,
        statement: &str,
    ) -> Result<Vec<T>, Fault> {
        let success = self
            .query(&format!("{statement} FORMAT JSONEachRow"))
            .await?;
        rows_of(&success.body)
    }

    /// Runs a statement on the `index`-th replica and reads its result row by row.
    pub(super) async fn rows_at<T: serde::de::DeserializeOwned>(
        &self,
        index: usize,
        statement: &str,
    ) -> Result<Vec<T>, Fault> {
        let statement = format!("{statement} FORMAT JSONEachRow");
        rows_of(&self.query_at(index, &statement).await?.body)
    }

    /// Settings of every statement but inserts from now on.
    pub(super) fn pin(&self, settings: impl Iterator<Item = Parameter>) {
        *self.pins.write().unwrap_or_else(PoisonError::into_inner) = settings.collect();
    }

    fn query_parameters(&self) -> Vec<Parameter> {
        let pins = self.pins.read().unwrap_or_else(PoisonError::into_inner);
        QUERY_PARAMETERS
            .iter()
            .chain(pins.iter())
            .copied()
            .collect()
    }

    fn statement<'a>(
        &self,
        parameters: &'a [(&'a str, &'a str)],
        body: &'a Body,
        statement: &str,
    ) -> Exchange<'a> {
        Exchange {
            query: parameters,
            body,
            timeout: self.query_timeout,
            begins_by: None,
            is_insert: false,
            is_read: statement.starts_with("SELECT "),
            may_repeat: true,
        }
    }

    /// Tries the replicas one after the other, while it is certain that nothing was written.
    ///
    /// A replica that accepts connections and answers none, as a frozen one does, must not hold up
    /// what another one can say.
    async fn in_turn(&self, exchange: &Exchange<'_>) -> Result<Success, Fault> {
        let count = self.endpoints.len();
        let mut result = Err(Fault::Overdue(Duration::ZERO));
        for index in self.in_order() {
            result = self.on(&self.endpoints[index], exchange).await;
            match &result {
                Err(Fault::Unreachable(error)) => {
                    if exchange.begins_by.is_some_and(|by| Instant::now() > by) {
                        // The next attempt begins with the replica that there was no time for.
                        let passed_over = usize::from(!is_held_up(error.as_ref()));
                        self.preferred
                            .store((index + passed_over) % count, Ordering::Relaxed);
                        break;
                    }
                }
                Err(fault) if exchange.is_insert && fault.is_silence() => {
                    // After a look, another one gets it.
                    self.preferred.store((index + 1) % count, Ordering::Relaxed);
                    break;
                }
                Err(fault) if next_may_help(fault) || (exchange.is_read && fault.is_silence()) => {
                    if !exchange.may_repeat && is_in_doubt(fault) {
                        // After a look, another one gets it.
                        self.preferred.store((index + 1) % count, Ordering::Relaxed);
                        break;
                    }
                }
                _ => {
                    self.preferred.store(index, Ordering::Relaxed);
                    break;
                }
            }
        }
        result
    }

    async fn on(&self, endpoint: &Endpoint, exchange: &Exchange<'_>) -> Result<Success, Fault> {
        let meter = Meter::default();
        let request = self.request(endpoint, exchange, meter.clone())?;
        let answered = self.answer_in_time(request, &meter, exchange.timeout);
        let (status, headers, body) = answered.await?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let exception = header("x-clickhouse-exception-code");
        let failure = if exchange.is_insert {
            Answer::failure(status, exception, &body, meter.sent())
        } else {
            Answer::query_failure(status, exception, &body)
        };
        if let Some(answer) = failure {
            return Err(Fault::Answered(answer));
        }
        if let Some(strange) = Strange::of(&headers, &body, exchange.is_insert) {
            return Err(Fault::Foreign(strange));
        }
        let own_name = header("x-clickhouse-server-display-name");
        Ok(Success {
            server: own_name.unwrap_or(&endpoint.name).to_owned(),
            body,
        })
    }

    fn request(
        &self,
        endpoint: &Endpoint,
        exchange: &Exchange<'_>,
        meter: Meter,
    ) -> Result<Request<Payload>, Fault> {
        let ends_by = Instant::now() + exchange.timeout;
        let mut url = endpoint.url.clone();
        url.query_pairs_mut().extend_pairs(exchange.query);
        let is_compressed = exchange.is_insert && self.compression.is_for(&endpoint.url);
        if is_compressed {
            url.query_pairs_mut().append_pair("decompress", "1");
        }
        let invalid = |error: hyper::http::Error| Fault::Unreachable(Arc::new(error));
        let mut password = HeaderValue::from_str(self.password.expose_secret())
            .map_err(|error| invalid(error.into()))?;
        password.set_sensitive(true);
        Request::builder()
            .method(Method::POST)
            .uri(url.as_str())
            .header("x-clickhouse-user", &self.user)
            .header("x-clickhouse-key", password)
            .header(
                "user-agent",
                concat!("pillarbox/", env!("CARGO_PKG_VERSION")),
            )
            .body(Payload::new(
                exchange.body,
                is_compressed,
                meter,
                Leave {
                    begins_by: exchange.begins_by.unwrap_or(ends_by),
                    ends_by,
                },
            ))
            .map_err(invalid)
    }

    /// The answer. Where no byte of the body leaves in the time for a connection, there is none.
    async fn answer_in_time(
        &self,
        request: Request<Payload>,
        meter: &Meter,
        timeout: Duration,
    ) -> Result<(u16, HeaderMap, Bytes), Fault> {
        let mut answering = std::pin::pin!(self.answer(request));
        let connecting = self.connect_timeout.min(timeout);
        let answered = match tokio::time::timeout(connecting, &mut answering).await {
            Err(_) if meter.give_up() => {
                return Err(Fault::Unreachable(Arc::new(Late(connecting))));
            }
            Err(_) => tokio::time::timeout(timeout - connecting, answering).await,
            answered => answered,
        };
        match answered {
            Ok(answer) => answer.map_err(|error| broken(error, meter.sent())),
            Err(_) => Err(Fault::Overdue(timeout)),
        }
    }

    /// The answer, read to its end. Its deadline is the caller's.
    async fn answer(&self, request: Request<Payload>) -> Result<(u16, HeaderMap, Bytes), Cause> {
        let response = self
            .http
            .request(request)
            .await
            .map_err(|error| Arc::new(error) as Cause)?;
        let (parts, body) = response.into_parts();
        let whole = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(Cause::from)?;
        Ok((parts.status.as_u16(), parts.headers, whole.to_bytes()))
    }
}

/// A request, for any replica.
#[derive(Clone, Copy)]
struct Exchange<'a> {
    query: &'a [(&'a str, &'a str)],
    body: &'a Body,
    timeout: Duration,
    begins_by: Option<Instant>,
    is_insert: bool,
    /// Whether it changes nothing: any replica may be asked as often as it takes.
    is_read: bool,
    /// Whether it does no harm when two replicas take it.
    may_repeat: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("no connection within {0:?}")]
struct Late(Duration);

fn http_client(
    connect_timeout: Duration,
) -> Result<HyperClient<HttpsConnector<Connector>, Payload>, String> {
    let mut tcp = HttpConnector::new();
    tcp.set_connect_timeout(Some(connect_timeout));
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
        .map_err(|error| format!("cannot set up tls: {error}"))?
        .https_or_http()
        .enable_http1()
        .wrap_connector(Connector(tcp));
    Ok(HyperClient::builder(TokioExecutor::new())
        // No connection is kept: on one that the server had closed meanwhile, "never arrived" could
        // not be told from "lost". Inserts are few and large.
        .pool_max_idle_per_host(0)
        .build(connector))
}

fn body_of(statement: &str) -> Body {
    Body::from(vec![Bytes::copy_from_slice(statement.as_bytes())])
}

fn decoded(text: &str) -> String {
    let pair = format!("x={}", text.replace('+', "%2B"));
    let value = url::form_urlencoded::parse(pair.as_bytes()).next();
    value
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

/// Tells a request that never left from one that may have been received.
fn broken(error: Cause, sent: Sent) -> Fault {
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(cause) = at {
        let inner = cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<rustls::Error>()) || cause.is::<rustls::Error>() {
            if sent == Sent::Nothing {
                return Fault::Untrusted(error);
            }
            break;
        }
        at = cause.source();
    }
    match sent {
        Sent::Nothing => Fault::Unreachable(error),
        Sent::Some | Sent::All => Fault::Lost(error),
    }
}

/// Whether it was not the replica that failed: this process came to it too late.
fn is_held_up(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| cause.is::<HeldUp>())
}

/// Whether another replica may take what this one surely did not.
fn next_may_help(fault: &Fault) -> bool {
    match fault {
        Fault::Answered(answer) => {
            answer.code == Some(code::TABLE_IS_READ_ONLY)
                || (answer.code.is_none() && answer.status == 503 && answer.sent == Sent::Nothing)
        }
        _ => false,
    }
}

fn is_in_doubt(fault: &Fault) -> bool {
    matches!(fault, Fault::Answered(answer) if may_have_written(answer))
}

fn rows_of<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, Fault> {
    let lines = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let row = |line: &[u8]| serde_json::from_slice(line);
    lines
        .map(row)
        .collect::<Result<_, _>>()
        .map_err(|error| Fault::Lost(Arc::new(error)))
}
