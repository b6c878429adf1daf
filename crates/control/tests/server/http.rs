//! JSON-RPC by HTTP, and the pages.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use control::server::{Credentials, HttpSocket, Limits, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::instrument::WithSubscriber;

use crate::probe::{Probe, limits, request};

pub(crate) const PASSWORD: &str = "correct horse";

/// Pages that a test can see into.
#[derive(Default)]
pub(crate) struct Pages {
    sick: bool,
    /// How often the metrics were asked for.
    asked: watch::Sender<u64>,
    /// What has to come before the metrics are there.
    held: Option<Mutex<mpsc::Receiver<()>>>,
}

impl control::server::Pages for Pages {
    fn healthy(&self) -> Result<(), String> {
        if self.sick { Err(String::from("disk7 is gone")) } else { Ok(()) }
    }

    fn metrics(&self) -> String {
        self.asked.send_modify(|asked| *asked += 1);
        if let Some(held) = &self.held {
            held.lock().unwrap().recv().unwrap();
        }
        String::from("tidegate_up 1\n")
    }
}

/// One connection.
pub(crate) struct Replies(BufReader<TcpStream>);

impl Replies {
    pub(crate) fn new(stream: TcpStream) -> Replies {
        Replies(BufReader::new(stream))
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// The status, the headers in small letters, and the body of the next answer.
    pub(crate) async fn next(&mut self) -> (u16, String, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).await.unwrap(), 0, "{head:?}");
        }
        let status = head[9..12].parse().unwrap();
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut body).await.unwrap();
        (status, head, String::from_utf8(body).unwrap())
    }

    /// Whether the server has closed it, without a further word.
    async fn ended(&mut self) -> bool {
        let mut text = Vec::new();
        self.0.read_to_end(&mut text).await.is_ok_and(|count| count == 0)
    }
}

pub(crate) fn credentials() -> Credentials {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("credentials");
    std::fs::write(&path, format!("admin:{PASSWORD}\n")).unwrap();
    Credentials::read(&path).unwrap()
}

fn serve(limits: Limits, sick: bool) -> (Arc<Probe>, Server, SocketAddr) {
    let (probe, server, address, _) = serve_pages(limits, Pages { sick, ..Pages::default() });
    (probe, server, address)
}

fn serve_pages(limits: Limits, pages: Pages) -> (Arc<Probe>, Server, SocketAddr, Arc<Pages>) {
    let probe = Probe::new();
    let server = Server::new(probe.clone(), limits);
    let socket = HttpSocket::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_address().unwrap();
    let pages = Arc::new(pages);
    server.http(socket, credentials(), pages.clone()).unwrap();
    (probe, server, address, pages)
}

pub(crate) fn authorization(password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("admin:{password}")))
}

pub(crate) fn ask(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// Sends one request on a connection of its own, with nothing after it; returns status, headers in small letters, and body.
async fn exchange(address: SocketAddr, text: &str) -> (u16, String, String) {
    let mut replies = Replies::new(TcpStream::connect(address).await.unwrap());
    replies.send(text).await;
    replies.0.shutdown().await.unwrap();
    let reply = replies.next().await;
    assert!(replies.ended().await);
    reply
}

#[tokio::test]
async fn a_call_is_answered_with_200_whatever_comes_of_it() {
    let (_probe, server, address) = serve(limits(), false);
    let known = authorization(PASSWORD);
    for path in ["/", "/any/path?at=all"] {
        let post = ask("POST", path, &known, &request(7, "echo", 1));
        let (status, head, body) = exchange(address, &post).await;
        assert_eq!((status, body.trim()), (200, r#"{"jsonrpc":"2.0","id":7,"result":[1]}"#));
        assert!(head.contains("content-type: application/json"), "{head}");
    }
    for (body, code) in [
        (request(1, "nonesuch", 1).as_str(), -32601),
        ("{\"id\":1}", -32600),
        ("nonsense", -32700),
        ("", -32700),
        ("{} {}", -32700),
        ("{\"id\":1", -32700),
        ("[".repeat(65).as_str(), -32700),
    ] {
        let (status, _, answer) = exchange(address, &ask("POST", "/", &known, body)).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["error"]["code"]), (200, &json!(code)), "{body}");
    }
    let notification = ask("POST", "/", &known, r#"{"method":"echo"}"#);
    assert_eq!(exchange(address, &notification).await.0, 204);
    assert_eq!(server.stop().await, 0);
}

#[tokio::test]
async fn without_credentials_there_is_nothing_but_the_probe() {
    let (probe, server, address) = serve(limits(), true);
    let wrong = authorization("wrong");
    for headers in ["", wrong.as_str(), "Authorization: Basic !\r\n", "Authorization: x\r\n"] {
        for (method, path) in
            [("POST", "/"), ("POST", "/healthz"), ("GET", "/metrics"), ("GET", "/")]
        {
            let text = ask(method, path, headers, &request(1, "echo", 1));
            let (status, head, _) = exchange(address, &text).await;
            assert_eq!(status, 401, "{method} {path} {headers}");
            assert!(head.contains("www-authenticate: basic realm="), "{head}");
        }
        let (status, _, body) = exchange(address, &ask("GET", "/healthz", headers, "")).await;
        assert!(status == 503 && !body.contains("disk7"), "{status} {body}");
    }
    assert_eq!(*probe.begun.borrow(), 0);
    assert_eq!(server.stop().await, 0);
}

#[tokio::test]
async fn the_pages() {
    let (_probe, _server, address) = serve(limits(), false);
    let known = authorization(PASSWORD);
    assert_eq!(exchange(address, &ask("GET", "/healthz", "", "")).await.0, 200);
    let (status, head, body) = exchange(address, &ask("GET", "/metrics", &known, "")).await;
    assert_eq!((status, body.as_str()), (200, "tidegate_up 1\n"));
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert_eq!(exchange(address, &ask("GET", "/", &known, "")).await.0, 404);
    assert_eq!(exchange(address, &ask("DELETE", "/", &known, "")).await.0, 405);
    let (_probe, _server, address) = serve(limits(), true);
    let (status, _, body) = exchange(address, &ask("GET", "/healthz", &known, "")).await;
    assert_eq!((status, body.as_str()), (503, "disk7 is gone\n"));
}

#[tokio::test]
async fn a_body_is_bounded() {
    let (probe, _server, address) = serve(Limits { message: 1000, ..limits() }, false);
    let known = authorization(PASSWORD);
    let large = ask("POST", "/", &known, &"x".repeat(1001));
    assert_eq!(exchange(address, &large).await.0, 413);
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: x\r\n{known}Transfer-Encoding: chunked\r\n\r\n3e9\r\n{}\r\n0\r\n\r\n",
        "x".repeat(1001)
    );
    assert_eq!(exchange(address, &chunked).await.0, 413);
    assert_eq!(*probe.begun.borrow(), 0);
}

#[tokio::test]
async fn a_connection_too_many_gets_503() {
    let (_probe, _server, address) = serve(Limits { connections: 1, ..limits() }, false);
    let _first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    let mut text = String::new();
    second.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_nothing_and_stopping_waits() {
    let (probe, server, address) = serve(limits(), false);
    let post = |number| ask("POST", "/", &authorization(PASSWORD), &request(1, "hold", number));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(post(1).as_bytes()).await.unwrap();
    probe.begun(1).await;
    drop(stream);
    let mut patient = TcpStream::connect(address).await.unwrap();
    patient.write_all(post(2).as_bytes()).await.unwrap();
    probe.begun(2).await;
    let stopping = tokio::spawn(server.stop());
    tokio::task::yield_now().await;
    probe.release(1);
    probe.ended(1).await;
    assert!(!stopping.is_finished());
    probe.release(2);
    let mut text = String::new();
    patient.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert_eq!(stopping.await.unwrap(), 0);
}

/// Neither silence before a request nor between two, nor half a request, keeps a connection for good.
#[tokio::test]
async fn silent_connections_are_closed() {
    let idle = Duration::from_millis(100);
    let (_probe, server, address) = serve(Limits { idle, ..limits() }, false);
    let known = authorization(PASSWORD);
    let whole = ask("POST", "/", &known, &request(1, "echo", 1));
    let body = format!("POST / HTTP/1.1\r\nHost: x\r\n{known}Content-Length: 10\r\n\r\n[");
    for text in ["", "POST / HT", whole.as_str(), body.as_str()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let start = Instant::now();
        stream.read_to_end(&mut answer).await.unwrap();
        // Far beyond what a loaded machine needs, and below what hyper would wait by itself.
        assert!(start.elapsed() < Duration::from_secs(20), "{text:?}");
    }
    assert_eq!(server.stop().await, 0);
}

#[tokio::test]
async fn a_connection_serves_many_requests_in_their_order() {
    let (probe, server, address) = serve(limits(), false);
    let known = authorization(PASSWORD);
    let mut replies = Replies::new(TcpStream::connect(address).await.unwrap());
    for id in 0..3 {
        replies.send(&ask("POST", "/", &known, &request(id, "echo", 1))).await;
        let (status, _, body) = replies.next().await;
        assert!(status == 200 && body.contains(&format!("\"id\":{id},")), "{body}");
    }
    // A refusal does not end it, nor do two requests at once.
    let refused = ask("POST", "/", "", &request(3, "echo", 1));
    let slow = ask("POST", "/", &known, &request(4, "hold", 1));
    let batch = ask("POST", "/", &known, &format!("[{}]", request(5, "echo", 1)));
    replies.send(&(refused + &slow + &batch + &ask("GET", "/healthz", "", ""))).await;
    assert_eq!(replies.next().await.0, 401);
    probe.begun(4).await;
    probe.release(1);
    assert!(replies.next().await.2.contains("\"id\":4,"));
    assert!(replies.next().await.2.starts_with("[{"));
    assert_eq!(replies.next().await.2, "ok\n");
    // Its silence is no reason to wait when the server stops.
    assert_eq!(server.stop().await, 0);
    assert!(replies.ended().await);
}

#[tokio::test]
async fn who_waits_longest_makes_room() {
    let (probe, _server, address) = serve(Limits { connections: 2, ..limits() }, false);
    let known = authorization(PASSWORD);
    let mut waiting = Vec::new();
    for number in 1..=4 {
        let mut replies = Replies::new(TcpStream::connect(address).await.unwrap());
        replies.send(&ask("POST", "/", &known, &request(number, "hold", number))).await;
        probe.begun(number).await;
        waiting.push(replies);
    }
    for replies in &mut waiting[..2] {
        assert!(replies.ended().await);
    }
    (1..=4).for_each(|number| probe.release(number));
    for replies in &mut waiting[2..] {
        assert_eq!(replies.next().await.0, 200);
    }
    probe.ended(4).await;
}

/// The test's one thread would not get on if a page took it.
#[tokio::test]
async fn a_page_that_hangs_holds_up_nothing_but_itself() {
    let (release, held) = mpsc::channel();
    let pages = Pages { held: Some(Mutex::new(held)), ..Pages::default() };
    let (_probe, server, address, pages) = serve_pages(limits(), pages);
    let known = authorization(PASSWORD);
    let mut asking = Vec::new();
    for _ in 0..3 {
        let mut replies = Replies::new(TcpStream::connect(address).await.unwrap());
        replies.send(&ask("GET", "/metrics", &known, "")).await;
        asking.push(replies);
    }
    pages.asked.subscribe().wait_for(|&asked| asked == 1).await.unwrap();
    assert_eq!(exchange(address, &ask("GET", "/healthz", "", "")).await.0, 200);
    let post = ask("POST", "/", &known, &request(7, "echo", 1));
    assert_eq!(exchange(address, &post).await.0, 200);
    assert_eq!(*pages.asked.borrow(), 1, "one thread waits, however many ask");
    (0..3).for_each(|_| release.send(()).unwrap());
    for mut replies in asking {
        assert_eq!(replies.next().await.2, "tidegate_up 1\n");
    }
    assert_eq!(server.stop().await, 0);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_password_is_in_no_log_and_no_answer() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let shown = runtime.block_on(
        async {
            let (_probe, server, address) = serve(limits(), false);
            let mut shown = format!("{server:?} {:?}", credentials());
            for password in [PASSWORD, "correct house"] {
                for body in [&*request(1, "echo", 1), "nonsense", ""] {
                    let text = ask("POST", "/", &authorization(password), body);
                    let (_, head, body) = exchange(address, &text).await;
                    shown += &(head + &body);
                }
            }
            server.stop().await;
            shown
        }
        .with_current_subscriber(),
    );
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for secret in [PASSWORD, "correct house", &STANDARD.encode(format!("admin:{PASSWORD}"))] {
        assert!(!log.contains(secret) && !shown.contains(secret), "{log} {shown}");
    }
}
