//! Deadlines, the target's wish to disconnect, and what is let go at the end.

use std::time::Duration;

use nvme::tcp::{DigestFlags, IcReq};
use target::{Action, DisconnectReason};
use zerocopy::IntoBytes;

use super::rig::{Pdu, QUEUE, Rig};
use crate::config::TcpConfig;
use crate::connection::CloseReason;
use crate::deadline::Timeout;

fn open() -> Rig {
    Rig::open(TcpConfig::default(), DigestFlags::empty(), 0)
}

/// Waits for `timeout` to pass, and checks that it does so then and not before.
fn expect_timeout(rig: &mut Rig, after: Duration, timeout: Timeout) {
    let tick = Duration::from_millis(1);
    rig.wait(after - tick);
    assert!(!rig.connection.is_closed(), "{:?}", rig.connection.reason());
    rig.wait(tick);
    assert!(rig.connection.is_closed());
    let reason = rig.connection.reason();
    assert!(matches!(reason, Some(CloseReason::Timeout(found)) if *found == timeout), "{reason:?}");
    assert_eq!(rig.core.queues, 0);
    assert_eq!(rig.core.bytes_lent(), 0);
    assert_eq!(rig.connection.wake_at(), None);
}

#[test]
fn no_icreq() {
    let mut rig = Rig::new(TcpConfig::default());
    let after = rig.config.timeouts.negotiation;
    rig.deliver(&IcReq::new(0, DigestFlags::empty(), 0).as_bytes()[..127]);
    expect_timeout(&mut rig, after, Timeout::Negotiation);
}

#[test]
fn half_a_pdu() {
    let mut rig = open();
    let after = rig.config.timeouts.pdu;
    rig.deliver(&rig.flush(1));
    let next = rig.flush(2);
    rig.deliver(&next[..71]);
    rig.wait(after / 2);
    rig.deliver(&next[71..]);
    rig.wait(after * 2);
    assert!(!rig.connection.is_closed(), "it was finished in time");
    // More bytes of the same PDU do not buy more time.
    rig.deliver(&next[..10]);
    rig.wait(after / 2);
    rig.deliver(&next[10..20]);
    expect_timeout(&mut rig, after / 2, Timeout::Pdu);
}

#[test]
fn half_of_the_data() {
    let mut rig = open();
    rig.deliver(&rig.write(1, 5000));
    rig.pdus();
    let data = rig.data(1, 0, 0, &[1; 5000], true);
    rig.deliver(&data[..3000]);
    let after = rig.config.timeouts.pdu;
    expect_timeout(&mut rig, after, Timeout::Pdu);
}

#[test]
fn data_that_never_comes() {
    let mut rig = open();
    let after = rig.config.timeouts.data;
    rig.deliver(&rig.write(1, 5000));
    // Other traffic, and part of the data, change nothing.
    rig.wait(after / 4);
    rig.deliver(&rig.flush(2));
    rig.deliver(&rig.data(1, 0, 0, &[1; 1000], false));
    rig.wait(after / 4);
    rig.deliver(&rig.write(3, 512));
    rig.deliver(&rig.data(3, 1, 0, &[1; 512], true));
    expect_timeout(&mut rig, after / 2, Timeout::Data);
}

#[test]
fn bytes_that_are_never_read() {
    let mut rig = open();
    let after = rig.config.timeouts.send;
    rig.peer_reads = false;
    rig.deliver(&rig.read(1, 4096));
    expect_timeout(&mut rig, after, Timeout::Send);
}

#[test]
fn bytes_that_are_read_too_slowly() {
    let mut rig = open();
    let after = rig.config.timeouts.send;
    rig.peer_reads = false;
    rig.deliver(&rig.read(1, 4096));
    for _ in 0..3 {
        rig.wait(after / 4);
        rig.turn(|connection, turn| {
            assert!(connection.batch(turn).is_some());
            connection.sent(1, turn);
        });
    }
    expect_timeout(&mut rig, after / 4, Timeout::Send);
}

#[test]
fn a_connection_at_rest_has_no_deadline() {
    let mut rig = open();
    rig.deliver(&rig.write(1, 512));
    rig.deliver(&rig.data(1, 0, 0, &[1; 512], true));
    rig.deliver(&rig.read(2, 512));
    for _ in 0..100 {
        rig.wait(Duration::from_secs(100));
    }
    assert!(!rig.connection.is_closed());
    assert_eq!(rig.connection.wake_at(), None);
}

#[test]
fn a_stall_of_ours_is_not_held_against_the_peer() {
    let mut rig = open();
    rig.core.slots = 1;
    rig.peer_reads = false;
    let mut bytes = rig.flush(1);
    bytes.extend(rig.flush(2));
    bytes.extend(&rig.flush(3)[..30]);
    rig.deliver(&bytes);
    assert!(!rig.connection.wants_bytes());
    // The send deadline is another matter: the peer reads just in time.
    rig.wait(rig.config.timeouts.send - Duration::from_secs(1));
    rig.peer_reads = true;
    rig.work();
    rig.wait(rig.config.timeouts.pdu - Duration::from_secs(1));
    rig.deliver(&rig.flush(3)[30..]);
    assert_eq!(rig.core.seen.len(), 3);
    assert!(rig.connection.reason().is_none());
}

#[test]
fn the_target_disconnects_after_what_it_said_before() {
    let mut rig = open();
    rig.peer_reads = false;
    rig.deliver(&rig.read(1, 4096));
    let reason = DisconnectReason::Asked;
    rig.core.actions.push_back(Action::Disconnect { queue: QUEUE, reason });
    rig.work();
    assert!(!rig.connection.has_said_all());
    assert_eq!(rig.core.queues, 1, "its answer is still on the way");
    rig.peer_reads = true;
    rig.work();
    assert!(matches!(rig.pdus()[..], [Pdu::Data(..)]));
    assert!(rig.connection.has_said_all());
    assert_eq!(rig.core.queues, 0);
    // The peer does not close: so we do, and the reason is the first one.
    rig.wait(rig.config.timeouts.close);
    assert!(rig.connection.is_closed());
    let reason = rig.connection.reason();
    assert!(matches!(reason, Some(CloseReason::ByTarget(DisconnectReason::Asked))));
}

#[test]
fn a_peer_that_goes_away_leaves_nothing_behind() {
    let mut rig = open();
    rig.deliver(&rig.write(1, 5000));
    rig.pdus();
    rig.peer_reads = false;
    rig.deliver(&rig.read(2, 4096));
    rig.deliver(&rig.data(1, 0, 0, &[1; 5000], true)[..200]);
    assert!(rig.core.bytes_lent() > 0);
    rig.turn(|connection, turn| connection.end(CloseReason::ByPeer, turn));
    assert_eq!(rig.core.bytes_lent(), 0);
    assert_eq!(rig.core.queues, 0);
    assert!(!rig.connection.wants_bytes());
    assert!(!rig.connection.wants_to_send());
}
