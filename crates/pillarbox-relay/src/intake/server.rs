//! One connection to Redis. It is never renewed beneath a caller: a server that was restarted or replaced
//! breaks it, and whoever connects again looks anew at what is there.

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, Script, Value};

use super::trouble::{DEADLINE, IntakeError, of_redis};

/// Keys looked at by one SCAN.
const SCAN_COUNT: usize = 1_000;

/// A connection for one queue.
pub(crate) struct Server {
    connection: MultiplexedConnection,
    pub(crate) key: String,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Server {
    pub(crate) async fn connect(client: &Client, key: &str) -> Result<Self, IntakeError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(DEADLINE))
            .set_response_timeout(Some(DEADLINE));
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        let opened = tokio::time::timeout(DEADLINE, opening).await;
        let connection = opened
            .map_err(|_| IntakeError::silent("redis"))?
            .map_err(|error| of_redis(error, key))?;
        Ok(Self {
            connection,
            key: key.to_owned(),
        })
    }

    pub(crate) async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, IntakeError> {
        let asked = tokio::time::timeout(DEADLINE, command.query_async(&mut self.connection));
        let answer = asked.await.map_err(|_| IntakeError::silent("redis"))?;
        answer.map_err(|error| of_redis(error, &self.key))
    }

    pub(crate) async fn run(
        &mut self,
        script: &Script,
        keys: &[&str],
        arguments: &[String],
    ) -> Result<Value, IntakeError> {
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(*key);
        }
        for argument in arguments {
            call.arg(argument);
        }
        let asked = tokio::time::timeout(DEADLINE, call.invoke_async(&mut self.connection));
        let answer = asked.await.map_err(|_| IntakeError::silent("redis"))?;
        answer.map_err(|error| of_redis(error, &self.key))
    }

    /// Keys that begin with this, up to so many.
    pub(crate) async fn keys_from(
        &mut self,
        start: &str,
        most: usize,
    ) -> Result<Vec<String>, IntakeError> {
        let mut pattern = String::new();
        for c in start.chars() {
            if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^') {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern.push('*');
        let (mut found, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(SCAN_COUNT);
            let (next, keys): (u64, Vec<Vec<u8>>) = self.ask(&scan).await?;
            found.extend(
                keys.into_iter()
                    .filter_map(|key| String::from_utf8(key).ok()),
            );
            if next == 0 || found.len() >= most {
                return Ok(found);
            }
            cursor = next;
        }
    }
}

/// The parts of an answer of a script.
pub(crate) fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

pub(crate) fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.into_bytes(),
        _ => Vec::new(),
    }
}

pub(crate) fn text(value: Value) -> String {
    String::from_utf8(bytes(value)).unwrap_or_default()
}

pub(crate) fn number(value: &Value) -> u64 {
    match value {
        Value::Int(number) => u64::try_from(*number).unwrap_or(0),
        _ => 0,
    }
}

/// An answer that is not what a script of ours gives.
pub(crate) fn unreadable() -> IntakeError {
    IntakeError::Refused(
        "redis gives an answer that cannot be read; version 6.2 or later is needed".to_owned(),
    )
}
