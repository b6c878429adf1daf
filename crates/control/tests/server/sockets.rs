//! Real sockets: Unix and TCP.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use control::server::{Limits, Server, TcpSocket, UnixError, UnixSocket};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::probe::{Answers, Probe, limits, request};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_floods_are_answered_to_the_last() {
    const REQUESTS: u64 = 5_000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rpc.sock");
    let mut server = Server::new(Probe::new(), Limits { in_flight: 64, ..limits() });
    server.unix(UnixSocket::bind(&path).unwrap()).unwrap();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move {
                let (reader, mut writer) = UnixStream::connect(path).await.unwrap().into_split();
                let flood = async move {
                    for id in 0..REQUESTS {
                        writer.write_all(request(id, "echo", 5).as_bytes()).await.unwrap();
                    }
                };
                let collect = async move {
                    let (mut answers, mut ids) = (Answers::new(reader), BTreeSet::new());
                    while let Some(answer) = answers.next().await {
                        assert!(ids.insert(answer["id"].as_u64().unwrap()));
                    }
                    ids.len()
                };
                // The writer is dropped when it is done, which closes that half.
                tokio::join!(flood, collect).1
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.await.unwrap(), 5_000);
    }
    assert_eq!(server.stop().await, 0);
}

#[tokio::test]
async fn the_path_is_owned_until_the_last_answer_has_left() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rpc.sock");
    let probe = Probe::new();
    let mut server = Server::new(probe.clone(), limits());
    server.unix(UnixSocket::bind(&path).unwrap()).unwrap();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(request(1, "hold", 1).as_bytes()).await.unwrap();
    probe.begun(1).await;
    let stopping = tokio::spawn(server.stop());
    tokio::task::yield_now().await;
    assert!(matches!(UnixSocket::bind(&path), Err(UnixError::Owned(_))));
    probe.release(1);
    let mut answers = Answers::new(stream);
    assert_eq!((answers.id().await, answers.next().await), (json!(1), None));
    assert_eq!(stopping.await.unwrap(), 0);
    assert!(!path.exists());
    UnixSocket::bind(&path).unwrap();
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rpc.sock");
    let mut server = Server::new(Probe::new(), Limits { connections: 2, ..limits() });
    server.unix(UnixSocket::bind(&path).unwrap()).unwrap();
    let mut first = Answers::new(UnixStream::connect(&path).await.unwrap());
    let second = UnixStream::connect(&path).await.unwrap();
    assert_eq!(Answers::new(UnixStream::connect(&path).await.unwrap()).told_off().await, -32603);
    drop(second);
    // The place is free as soon as the server has seen that end: asking again is all a client can do.
    loop {
        let (reader, mut writer) = UnixStream::connect(&path).await.unwrap().into_split();
        let _ = writer.write_all(request(7, "echo", 1).as_bytes()).await;
        if Answers::new(reader).next().await.is_some_and(|answer| answer["id"] == json!(7)) {
            break;
        }
    }
    assert_eq!(server.stop().await, 0);
    assert_eq!(first.next().await, None);
}

/// As opi-spdk-bridge does it: a connection for each call, whose writing half is closed after the request.
#[tokio::test]
async fn tcp_carries_the_same() {
    let server = Server::new(Probe::new(), limits());
    let socket = TcpSocket::bind(LOOPBACK).unwrap();
    let address = socket.local_address().unwrap();
    server.tcp(socket).unwrap();
    for id in 0..50 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request(id, "big", 100_000).as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answers = Answers::new(stream);
        assert_eq!((answers.id().await, answers.next().await), (json!(id), None));
    }
    assert_eq!(server.stop().await, 0);
    assert!(TcpStream::connect(address).await.is_err());
}

/// The reason reaches a client that had more to say than was read, in spite of the reset that the kernel would send.
#[tokio::test]
async fn a_reason_survives_what_was_not_read() {
    let server = Server::new(Probe::new(), limits());
    let socket = TcpSocket::bind(LOOPBACK).unwrap();
    let address = socket.local_address().unwrap();
    server.tcp(socket).unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&vec![b'!'; 300_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("-32700"));
    assert_eq!(server.stop().await, 0);
}

/// Whoever holds the lock owns the path, even before there is a socket: SPDK's convention.
#[test]
fn the_lock_alone_owns_the_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rpc.sock");
    let lock = std::fs::File::create(directory.path().join("rpc.sock.lock")).unwrap();
    lock.try_lock().unwrap();
    assert!(matches!(UnixSocket::bind(&path), Err(UnixError::Owned(_))));
    assert!(!path.exists());
    drop(lock);
    UnixSocket::bind(&path).unwrap();
}

/// Clients that ask for what hangs, half-close and wait, one after the other, on a socket with few places: each new one
/// is served in place of the one that waited longest. One that is still there for more is not sent away.
#[tokio::test]
async fn who_waits_longest_makes_room() {
    let probe = Probe::new();
    let server = Server::new(probe.clone(), Limits { connections: 3, ..limits() });
    let socket = TcpSocket::bind(LOOPBACK).unwrap();
    let address = socket.local_address().unwrap();
    server.tcp(socket).unwrap();
    let mut patient = TcpStream::connect(address).await.unwrap();
    patient.write_all(request(1, "hold", 1).as_bytes()).await.unwrap();
    probe.begun(1).await;
    let mut waiting = Vec::new();
    for number in 2..=8 {
        // Until the server has seen that one of the others has nothing more to say, it refuses.
        let mut stream = loop {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(request(number, "hold", number).as_bytes()).await;
            let _ = stream.shutdown().await;
            let mut refusal = String::new();
            tokio::select! {
                () = probe.begun(number) => break stream,
                _ = stream.read_to_string(&mut refusal) => {}
            }
        };
        waiting.push(async move {
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text).await;
            text
        });
    }
    let last = waiting.split_off(5);
    for one in waiting {
        assert_eq!(one.await, "", "it was sent away");
    }
    (1..=8).for_each(|number| probe.release(number));
    for one in last {
        assert!(one.await.contains("result"));
    }
    let mut answers = Answers::new(patient);
    assert_eq!(answers.id().await, json!(1));
    probe.ended(8).await;
}

/// A Unix socket's client that is gone altogether makes room, too, though all it may have under way hangs.
#[tokio::test]
async fn who_is_gone_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rpc.sock");
    let probe = Probe::new();
    let limits = Limits { connections: 1, in_flight: 2, message: 200, ..limits() };
    let mut server = Server::new(probe.clone(), limits);
    server.unix(UnixSocket::bind(&path).unwrap()).unwrap();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let text: String = (1..=3).map(|number| request(number, "hold", number)).collect();
    stream.write_all(text.as_bytes()).await.unwrap();
    probe.begun(2).await;
    drop(stream);
    loop {
        let (reader, mut writer) = UnixStream::connect(&path).await.unwrap().into_split();
        let _ = writer.write_all(request(7, "echo", 1).as_bytes()).await;
        if Answers::new(reader).next().await.is_some_and(|answer| answer["id"] == json!(7)) {
            break;
        }
    }
    assert_eq!(*probe.ended.borrow(), 1, "the echo");
}
