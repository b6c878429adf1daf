//! The blocking controller and real sockets, against the stub.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod answers;
mod stub;
mod wire;

use answers::{BLOCK, IN_CAPSULE, SUBSYSTEM, Script, options};
use host::{ConnectOptions, Controller, HostError, Transfer};
use nvme::Status;
use nvme::fabrics::ConnectField;
use nvme::io::{Command as Io, Transfer as Blocks};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use stub::Stub;

#[test]
fn blocks_come_back_as_written_at_any_size_with_and_without_digests() {
    for (header_digest, data_digest, success_flag) in
        [(false, false, true), (true, false, false), (false, true, true), (true, true, false)]
    {
        let stub = Stub::start(Script { success_flag, queues: 4, ..Script::default() });
        let mut options = options(stub.address);
        options.header_digest = header_digest;
        options.data_digest = data_digest;
        let mut controller = Controller::connect(options).unwrap();
        assert_eq!(controller.digests(), (header_digest, data_digest));
        assert_eq!(controller.cntlid(), 17);
        assert_eq!(controller.in_capsule(), IN_CAPSULE);
        assert_eq!(controller.max_transfer(), Some(128 * 1024));
        assert_eq!(controller.request_queues(8).unwrap(), 4);
        let mut queue = controller.open_queue(1, 8, 128 * 1024).unwrap();
        for blocks in [1_u32, 8, 9, 64, 256] {
            let length = blocks * 512;
            let bytes = usize::try_from(length).unwrap();
            let slot = queue.reserve().unwrap();
            let data: Vec<u8> = (0..bytes).map(|at| u8::try_from(at * 13 % 249).unwrap()).collect();
            queue.copy_from(slot, 0, &data);
            let limit = Duration::from_secs(10);
            let write = Io::Write(Blocks::new(3, blocks)).to_sqe(1);
            let ended = queue.call(slot, write, Transfer::Write(length), limit, "a write").unwrap();
            assert!(ended.cqe.status().is_success());
            assert_eq!(stub.state.disk.lock().unwrap()[3 * BLOCK..3 * BLOCK + bytes], data);
            queue.copy_from(slot, 0, &vec![0; bytes]);
            let read = Io::Read(Blocks::new(3, blocks)).to_sqe(1);
            let ended = queue.call(slot, read, Transfer::Read(length), limit, "a read").unwrap();
            assert!(ended.cqe.status().is_success() && !ended.data_digest_error);
            let mut found = vec![0; bytes];
            assert_eq!((queue.copy_to(slot, 0, &mut found), found), (bytes, data));
            queue.release(slot);
        }
        controller.keep_alive().unwrap();
        controller.shutdown().unwrap();
    }
}

#[test]
fn a_batch_takes_one_send() {
    let stub = Stub::start(Script { queues: 1, ..Script::default() });
    let mut controller = Controller::connect(options(stub.address)).unwrap();
    let mut queue = controller.open_queue(1, 32, 4096).unwrap();
    let before = queue.system_calls().send;
    while let Some(slot) = queue.reserve() {
        let read = Io::Read(Blocks::new(0, 8)).to_sqe(1);
        queue.submit(slot, read, Transfer::Read(4096)).unwrap();
    }
    assert_eq!(queue.outstanding(), 32);
    queue.flush().unwrap();
    assert_eq!(queue.system_calls().send, before + 1);
    let mut ended = 0;
    while ended < 32 {
        if !queue.receive().unwrap() {
            assert!(queue.wait(Duration::from_secs(10)).unwrap());
        }
        while let Some(completion) = queue.next_completion() {
            assert!(completion.cqe.status().is_success());
            ended += 1;
        }
    }
    assert_eq!(queue.outstanding(), 0);
}

#[test]
fn long_lists_and_logs_are_read_in_pieces() {
    let subsystems = vec![SUBSYSTEM; 9];
    let stub = Stub::start(Script { subsystems, restless: 3, ..Script::default() });
    let mut controller = Controller::connect(options(stub.address)).unwrap();
    let namespaces = controller.namespaces().unwrap();
    assert_eq!(namespaces.len(), 750);
    assert!(namespaces.iter().zip((1..).step_by(2)).all(|(&nsid, expected)| nsid == expected));
    // The counter moves under the first read, so that one is given up.
    let (header, entries) = controller.discovery_log().unwrap();
    assert_eq!(header.genctr.get(), 3);
    assert_eq!(entries.len(), 9);
    assert!(entries.iter().all(|entry| entry.subsystem().unwrap().as_str() == SUBSYSTEM));
}

#[test]
fn a_log_that_never_rests_is_an_error() {
    let stub = Stub::start(Script {
        subsystems: vec![SUBSYSTEM],
        restless: u64::MAX,
        ..Script::default()
    });
    let mut controller = Controller::connect(options(stub.address)).unwrap();
    let error = controller.discovery_log().unwrap_err();
    assert!(matches!(error, HostError::Unsteady { page: 0x70, .. }), "{error}");
}

#[test]
fn refusals_name_the_remedy() {
    let cases = [
        (Status::CONNECT_INVALID_HOST, 0, "allow it there, or pass another host with -q"),
        (Status::CONNECT_INVALID_PARAMETERS, ConnectField::SubsystemNqn.dw0(), "check -n"),
        (Status::CONNECT_INVALID_PARAMETERS, ConnectField::HostId.dw0(), "check -I"),
        (Status::CONNECT_CONTROLLER_BUSY, 0, "raise its limits"),
    ];
    for (status, result, remedy) in cases {
        let stub = Stub::start(Script { refuse: Some((status, result)), ..Script::default() });
        let text = Controller::connect(options(stub.address)).unwrap_err().to_string();
        assert!(text.contains(remedy) && text.contains(SUBSYSTEM), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

#[test]
fn an_address_without_a_target_is_named() {
    let free = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let text = Controller::connect(options(free)).unwrap_err().to_string();
    assert!(text.contains(&format!("nothing listens on {free}")), "{text}");
}

#[test]
fn a_silent_peer_costs_no_more_than_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = options(listener.local_addr().unwrap());
    options.timeout = Duration::from_millis(50);
    let begun = Instant::now();
    let error = Controller::connect(options).unwrap_err();
    assert!(matches!(error, HostError::Timeout { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_timeout_beyond_the_clock_is_a_long_one() {
    let stub = Stub::start(Script::default());
    let options = ConnectOptions { timeout: Duration::MAX, ..options(stub.address) };
    Controller::connect(options).unwrap().shutdown().unwrap();
}

#[test]
fn a_peer_that_is_not_nvme_is_recognised() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let peer = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        stream
    });
    let error = Controller::connect(options(address)).unwrap_err();
    assert!(matches!(error, HostError::NotNvme { .. }), "{error}");
    assert!(error.to_string().contains(&format!("{address} answers is not NVMe/TCP")), "{error}");
    drop(peer.join().unwrap());
}
