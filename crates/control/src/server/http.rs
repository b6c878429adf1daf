//! JSON-RPC by HTTP, as SPDK's proxy offers it, and the pages for probes and Prometheus.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /healthz` | 200, or 503; why, only to those with credentials. The one request that needs none: probes have none |
//! | anything else without the credentials | 401 |
//! | `GET /metrics` | 200 and the metrics |
//! | `POST`, any path | 200 and the response, be it a result or an error: clients take a status from 400 for a broken server; 204 for notifications |
//! | anything else | 404 or 405 |
//!
//! One message under way per connection, since HTTP/1.1 answers in order. A body is one JSON value and is bounded as a
//! message on any other socket is.
//!
//! Rejected: axum. Three routes do not pay for a router, its macros and tower.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::task::JoinError;
use tokio::time::timeout;
use tokio_util::codec::Decoder;

use super::accept::Protocol;
use super::places::Place;
use super::room::Room;
use super::stall::Stall;
use super::{Credentials, Limits, Shared, refusal};
use crate::jsonrpc::{Message, RpcError, SplitError, Splitter};

/// What there is to see besides the methods. Both may block: they are called on threads for that, each once at a time.
pub trait Pages: Send + Sync + 'static {
    /// Whether the node does what it is there for, or why not.
    fn healthy(&self) -> Result<(), String>;
    /// Everything counted, in Prometheus's text format.
    fn metrics(&self) -> String;
}

/// A port that is bound but not served yet.
#[derive(Debug)]
pub struct HttpSocket(super::TcpSocket);

/// What is served there.
#[derive(Clone)]
pub(super) struct Site {
    credentials: Credentials,
    pages: Arc<dyn Pages>,
    turns: Turns,
}

/// Whose turn it is with a page: one that hangs takes one thread, however often it is asked for.
#[derive(Clone, Default)]
struct Turns {
    health: Arc<Mutex<()>>,
    metrics: Arc<Mutex<()>>,
}

impl HttpSocket {
    /// Takes the address. From now on connections wait to be accepted.
    pub fn bind(address: SocketAddr) -> io::Result<HttpSocket> {
        super::TcpSocket::bind(address).map(HttpSocket)
    }

    /// Where it listens, with the port that the kernel chose where 0 was asked for.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_address()
    }

    pub(super) fn into_listener(self) -> io::Result<tokio::net::TcpListener> {
        self.0.into_listener()
    }
}

impl Protocol for Site {
    async fn serve<S>(self, shared: Arc<Shared>, stream: S, place: &Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let idle = shared.limits.idle;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(idle)
            .half_close(true)
            .serve_connection(
                TokioIo::new(Stall::new(stream, idle)),
                service_fn(async |request| {
                    Ok::<_, Infallible>(self.answer(&shared, place, request).await)
                }),
            );
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = shared.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!("an HTTP connection ends: {error}");
        }
    }

    fn full(&self, _connections: usize) -> Bytes {
        Bytes::from_static(
            b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        )
    }
}

impl Site {
    pub(super) fn new(credentials: Credentials, pages: Arc<dyn Pages>) -> Site {
        Site { credentials, pages, turns: Turns::default() }
    }

    async fn answer(
        &self,
        shared: &Shared,
        place: &Place,
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let known = request
            .headers()
            .get(AUTHORIZATION)
            .is_some_and(|value| self.credentials.are_in(value.as_bytes()));
        let path = request.uri().path();
        match *request.method() {
            Method::GET | Method::HEAD if path == "/healthz" => {
                self.health(shared, place, known).await
            }
            _ if !known => {
                let mut response = page(StatusCode::UNAUTHORIZED, "user and password, please\n");
                let challenge = HeaderValue::from_static("Basic realm=\"tidegate\"");
                response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                response
            }
            Method::GET | Method::HEAD if path == "/metrics" => {
                let turn = self.turns.metrics.clone();
                let write = |pages: &dyn Pages| pages.metrics();
                let Ok(metrics) = self.render(shared, place, turn, write).await else {
                    return page(StatusCode::INTERNAL_SERVER_ERROR, "the page was given up\n");
                };
                let mut response = page(StatusCode::OK, metrics);
                let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, format);
                response
            }
            Method::GET | Method::HEAD => page(StatusCode::NOT_FOUND, "no such page\n"),
            Method::POST => call(shared, place, request.into_body()).await,
            _ => {
                let mut response = page(StatusCode::METHOD_NOT_ALLOWED, "");
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
                response
            }
        }
    }

    async fn health(&self, shared: &Shared, place: &Place, known: bool) -> Response<Full<Bytes>> {
        let (turn, ask) = (self.turns.health.clone(), |pages: &dyn Pages| pages.healthy());
        match self.render(shared, place, turn, ask).await {
            Ok(Ok(())) => page(StatusCode::OK, "ok\n"),
            Ok(Err(why)) if known => page(StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
            _ => page(StatusCode::SERVICE_UNAVAILABLE, "not healthy\n"),
        }
    }

    /// What `write` makes of the pages, on a thread that may block.
    async fn render<T: Send + 'static>(
        &self,
        shared: &Shared,
        place: &Place,
        turn: Arc<Mutex<()>>,
        write: fn(&dyn Pages) -> T,
    ) -> Result<T, JoinError> {
        let _yielding = place.may_be_taken();
        let turn = turn.lock_owned().await;
        let pages = self.pages.clone();
        let written = shared.tasks.spawn_blocking(move || {
            let _turn = turn;
            write(&*pages)
        });
        written.await
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Site").finish_non_exhaustive()
    }
}

/// Carries out the message in the body.
async fn call(shared: &Shared, place: &Place, body: Incoming) -> Response<Full<Bytes>> {
    let limits = &shared.limits;
    let body = match timeout(limits.idle, Limited::new(body, limits.message).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let words = format!("longer than {} bytes\n", limits.message);
            return last(page(StatusCode::PAYLOAD_TOO_LARGE, words));
        }
        Ok(Err(_)) => return last(page(StatusCode::BAD_REQUEST, "the body cannot be read\n")),
        Err(_) => return last(page(StatusCode::REQUEST_TIMEOUT, "the body does not come\n")),
    };
    let _yielding = place.may_be_taken();
    let answer = match message(body, limits) {
        Ok(message) => match shared
            .begin(message, Room::new(limits.answers), |answer, _| answer)
            .await
        {
            Ok(answer) => answer,
            Err(_) => return page(StatusCode::INTERNAL_SERVER_ERROR, "the method was given up\n"),
        },
        Err(error) => Some(refusal(error)),
    };
    let Some(answer) = answer else { return page(StatusCode::NO_CONTENT, "") };
    let mut response = page(StatusCode::OK, answer);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The one message that a body holds, within the bounds that hold for any.
fn message(body: Bytes, limits: &Limits) -> Result<Message, RpcError> {
    let mut body = BytesMut::from(body);
    let mut splitter = Splitter::new(limits.message, limits.nesting);
    let mut next = || match splitter.decode_eof(&mut body) {
        Ok(text) => Ok(text),
        Err(SplitError::Garbage(error)) => Err(error),
        Err(SplitError::Io(error)) => Err(RpcError::parse_error(error)),
    };
    let text = next()?.ok_or_else(|| RpcError::parse_error("the body is empty"))?;
    match next()? {
        None => Message::parse(&text),
        Some(_) => Err(RpcError::parse_error("more than one value: a batch is an array")),
    }
}

fn page(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

/// After an answer that comes before the request is whole, what follows is not to be understood.
fn last(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
