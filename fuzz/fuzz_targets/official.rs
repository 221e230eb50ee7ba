//! The decoder of the `clickhouse` crate. It reads answers of a server only, so a server that lives in
//! memory answers with the block.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use clickhouse::native::Block;
use clickhouse::native::decode::{Decode, ValueReader};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

/// A value as its bytes, whatever its type.
pub struct Raw(pub Option<Vec<u8>>);

impl<'a> Decode<'a> for Raw {
    fn compatible(_: &clickhouse::native::DataTypeNode) -> bool {
        true
    }

    fn decode(
        value: &mut ValueReader<'a>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self(Some(value.native_bytes().to_vec())))
    }

    fn decode_null(
        _: &clickhouse::native::DataTypeNode,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self(None))
    }
}

/// The block that `body` holds, and nothing after it.
pub fn decode(body: Vec<u8>) -> Block {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let client = HttpClient::builder(TokioExecutor::new()).build(Memory(body));
            let client = clickhouse::Client::with_http_client(client).with_url("http://memory/");
            let client = client.with_compression(clickhouse::Compression::None);
            let mut cursor = client.query("SELECT 1").fetch_native().expect("a cursor");
            let block = cursor.next().await.expect("a block").expect("one block");
            assert!(cursor.next().await.expect("an end").is_none());
            block
        })
    })
}

/// Connects to a server that answers with these bytes.
#[derive(Clone)]
struct Memory(Vec<u8>);

/// A connection with it.
struct Wire(TokioIo<DuplexStream>);

impl tower_service::Service<hyper::Uri> for Memory {
    type Response = Wire;
    type Error = std::io::Error;
    type Future = Ready<Result<Wire, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: hyper::Uri) -> Self::Future {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let body = self.0.clone();
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                if far.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = far.write_all(head.as_bytes()).await;
            let _ = far.write_all(&body).await;
        });
        ready(Ok(Wire(TokioIo::new(near))))
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Wire {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Wire {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(context)
    }
}
