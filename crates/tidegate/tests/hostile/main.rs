//! Hosts that mean harm, or are broken, against a whole node over real sockets. Each gets its termination
//! request or its timeout; meanwhile another host's I/O goes on, and afterwards nothing is left.

#![allow(clippy::print_stdout)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc, missing_docs)]

mod bystander;
mod daemon;
mod flood;
mod greed;
mod slow;
mod violation;

#[allow(dead_code)]
#[path = "../native/support/mod.rs"]
mod support;

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use ::node::Node;
use support::daemon::NQN;
use support::node::{self, Exported, Plan, ram};
use support::{PATIENCE, until};
use testkit::peer::{BLOCK, Peer};

/// Long enough for an honest host on a busy machine, short enough to wait for.
const SHORT: Duration = Duration::from_secs(2);

/// A node with a RAM disk that [`testkit::peer`] knows how to reach.
fn start(plan: &Plan) -> (Node, SocketAddr) {
    let (node, addresses) =
        node::start(plan, vec![Exported::new(NQN, vec![ram("ram", 64 << 20, BLOCK)])]);
    (node, addresses[0])
}

/// Reads whatever comes until the node closes the connection; how many bytes.
fn read_to_end(peer: &mut Peer) -> usize {
    peer.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = [0; 4096];
    let mut total = 0;
    loop {
        match peer.stream.read(&mut bytes) {
            Ok(0) => return total,
            Ok(count) => total += count,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return total,
            Err(error) => panic!("the connection was not closed: {error}"),
        }
    }
}

/// Waits until nothing is left of any connection, and ends the node.
fn ends_clean(node: &Node) {
    until("every connection is gone", || (node.connections() == 0).then_some(()));
    until("every queue, request and buffer is free", || {
        let census = node.census().unwrap();
        census
            .iter()
            .all(|shard| shard.queues == 0 && shard.requests == 0 && shard.memory == 0)
            .then_some(())
    });
    node.shutdown(PATIENCE).unwrap();
}
