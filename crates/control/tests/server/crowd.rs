//! Many clients of every kind at the same time, while a method hangs.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use control::server::{HttpSocket, Limits, Server, TcpSocket, UnixSocket};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::http::{PASSWORD, Pages, Replies, ask, authorization, credentials};
use crate::probe::{Answers, Probe, limits, request};

const CLIENTS: u64 = 60;
const CALLS: u64 = 20;
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Calls by turns something that hangs and something that does not; the latter is answered.
async fn stream<S: AsyncRead + AsyncWrite>(client: u64, stream: S) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut answers = Answers::new(reader);
    for call in 0..CALLS {
        let text = request(call, "hold", client) + &request(CALLS + call, "echo", call);
        writer.write_all(text.as_bytes()).await.unwrap();
        assert_eq!(answers.id().await, json!(CALLS + call));
    }
    // Nothing more to say; everything still to hear, once it is released.
    writer.shutdown().await.unwrap();
    let mut ids = Vec::new();
    while let Some(answer) = answers.next().await {
        ids.push(answer["id"].as_u64().unwrap());
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..CALLS).collect::<Vec<_>>());
}

async fn http(client: u64, address: SocketAddr) {
    let known = authorization(PASSWORD);
    let hang = ask("POST", "/", &known, &request(1, "hold", client));
    let mut hung = Replies::new(TcpStream::connect(address).await.unwrap());
    hung.send(&hang).await;
    let mut lively = Replies::new(TcpStream::connect(address).await.unwrap());
    for call in 0..CALLS {
        lively.send(&ask("POST", "/", &known, &request(call, "echo", call))).await;
        let (status, _, body) = lively.next().await;
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &answer["id"], &answer["result"]), (200, &json!(call), &json!([call])));
    }
    assert_eq!(hung.next().await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_method_holds_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rpc.sock");
    let probe = Probe::new();
    let mut server = Server::new(probe.clone(), Limits { connections: 200, ..limits() });
    server.unix(UnixSocket::bind(&path).unwrap()).unwrap();
    let socket = TcpSocket::bind(LOOPBACK).unwrap();
    let tcp = socket.local_address().unwrap();
    server.tcp(socket).unwrap();
    let socket = HttpSocket::bind(LOOPBACK).unwrap();
    let address = socket.local_address().unwrap();
    server.http(socket, credentials(), Arc::new(Pages::default())).unwrap();

    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let path = path.clone();
        clients
            .spawn(async move { stream(client, UnixStream::connect(path).await.unwrap()).await });
        clients.spawn(async move { stream(client, TcpStream::connect(tcp).await.unwrap()).await });
        clients.spawn(http(client, address));
    }
    let (hung, answered) = (2 * CLIENTS * CALLS + CLIENTS, 3 * CLIENTS * CALLS);
    let whole = async {
        probe.begun(hung + answered).await;
        probe.ended(answered).await;
    };
    // A client that fails says why; none ends before it is released.
    tokio::select! {
        () = whole => {}
        Some(ended) = clients.join_next() => panic!("{ended:?}"),
    }
    assert_eq!(*probe.ended.borrow(), answered);
    (0..CLIENTS).for_each(|client| probe.release(client));
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert_eq!(server.stop().await, 0);
}
