//! In the steady state nothing is allocated: turns, ring operations, events, timers.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
mod counting;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use counting::allocations;
use memory::{Arena, ArenaConfig, Hugepages, SLAB_SIZE};
use reactor::ring::{Op, Segments};
use reactor::{Interest, Poller, Progress, Reactor, ReactorConfig, Timers};

struct Idler;

impl Poller for Idler {
    fn poll(&mut self) -> Progress {
        Progress::Worked
    }
}

#[test]
fn the_steady_state_allocates_nothing() {
    let mut reactor = Reactor::new(&ReactorConfig::default()).unwrap();
    let local = reactor.local().clone();
    local.add_poller(Box::new(Idler));
    let ring = local.ring().expect("io_uring works here");
    let port = ring.port();
    let file = ring.register_file(Arc::new(tempfile::tempfile().unwrap().into()));
    let config = ArenaConfig { capacity: SLAB_SIZE, hugepages: Hugepages::Never };
    let arena = Arena::new(config);
    let pool = arena.pool(SLAB_SIZE).unwrap();
    ring.register_pool(&pool);
    let source = local.source();
    let (mut left, mut right) = UnixStream::pair().unwrap();
    source.register(&left, 0, Interest::READ).unwrap();
    let mut timers = Timers::new();

    let mut round = || {
        let mut asked = 0;
        for block in 0..16 {
            let buffer = pool.take(8192).unwrap();
            let (file, offset) = (file.clone(), block * 8192);
            let mut data = Segments::from(buffer.segment(0, 4096).unwrap());
            if block % 3 == 0 {
                data.push(buffer.segment(4096, 4096).unwrap()).unwrap();
            }
            let op = match block % 4 {
                0 => Op::Read { file, data, offset },
                3 => Op::Fsync { file, datasync: true },
                _ => Op::Write { file, data, offset, dsync: false },
            };
            port.submit(op, block).unwrap();
            asked += 1;
        }
        let timer = timers.insert(local.now() + Duration::from_secs(1), 1);
        timers.insert(local.now(), 2);
        right.write_all(b"x").unwrap();
        let (mut done, mut events) = (0, 0);
        while done < asked || events < 1 {
            reactor.turn();
            done += port.drain(64, |_, result| assert!(result >= 0));
            events += source.drain(|_, _| left.read_exact(&mut [0]).unwrap());
        }
        assert_eq!(timers.pop_due(local.now()), Some(2));
        timers.cancel(timer);
    };
    for _ in 0..50 {
        round();
    }
    let before = allocations();
    for _ in 0..500 {
        round();
    }
    assert_eq!(allocations() - before, 0);
}
