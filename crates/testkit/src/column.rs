//! A target in a box: a shard on each reactor with its poller, a configuration with one namespace, for the tests of
//! transports.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::missing_panics_doc)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};

use block::BlockDevice;
use block::ram::{RamDevice, RamOptions};
use memory::Pool;
use nvme::Nqn;
use nvme::address::{TransportAddress, TransportType};
use reactor::{Handle, Instant, Local, Poller, Progress};
use target::configuration::{
    Configuration, Hosts, Listener, ListenerId, NamespaceOptions, SubsystemOptions,
};
use target::{Message, Shard, ShardConfig, ShardIndex, ShardLimits};

use crate::peer::{BLOCK, SUBSYSTEM};

/// Messages to each shard.
pub type Mailboxes = Arc<Vec<Mutex<VecDeque<Message>>>>;

/// Mailboxes for so many shards.
pub fn mailboxes(shards: usize) -> Mailboxes {
    Arc::new((0..shards).map(|_| Mutex::default()).collect())
}

struct ShardPoller {
    local: Local,
    shard: Rc<RefCell<Shard>>,
    mailboxes: Mailboxes,
}

impl ShardPoller {
    fn turn(&self) -> bool {
        let mut shard = self.shard.borrow_mut();
        let mut worked = false;
        let own = &self.mailboxes[self.local.index()];
        loop {
            let Some(message) = own.lock().unwrap().pop_front() else { break };
            shard.deliver(message);
            worked = true;
        }
        worked |= shard.poll(self.local.now());
        while let Some((ShardIndex(to), message)) = shard.next_message() {
            self.mailboxes[usize::from(to)].lock().unwrap().push_back(message);
            let _ = self.local.handle(usize::from(to)).unwrap().send(|_| {});
        }
        worked
    }
}

impl Poller for ShardPoller {
    fn poll(&mut self) -> Progress {
        Progress::from_worked(self.turn())
    }

    fn flush(&mut self) {
        self.turn();
    }

    fn ready_to_sleep(&mut self) -> bool {
        !self.shard.borrow().has_work()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.shard.borrow().next_deadline()
    }
}

/// Gives a reactor its shard, on its thread. Transports are added after it.
pub fn furnish(
    local: &Local,
    pool: Pool,
    requests: u32,
    configuration: Arc<Configuration>,
    mailboxes: Mailboxes,
) -> Rc<RefCell<Shard>> {
    let config = ShardConfig {
        index: ShardIndex(u16::try_from(local.index()).unwrap()),
        shards: u16::try_from(mailboxes.len()).unwrap(),
        pool,
        limits: ShardLimits { requests, ..ShardLimits::default() },
        now: local.now(),
    };
    let mut shard = Shard::new(config);
    let errors = shard.configure(configuration, &mut |device| device.open_queue(local));
    assert!(errors.is_empty(), "{errors:?}");
    let shard = Rc::new(RefCell::new(shard));
    let poller = ShardPoller { local: local.clone(), shard: shard.clone(), mailboxes };
    local.add_poller(Box::new(poller));
    shard
}

/// A RAM device of so many bytes.
pub fn ram(size: u64) -> RamDevice {
    RamDevice::new(&RamOptions { name: "ram".into(), size, block_size: BLOCK, read_only: false })
        .unwrap()
}

/// A device as namespace 1 of [`SUBSYSTEM`], and listeners.
pub fn configuration(
    listeners: &[(TransportType, SocketAddr)],
    device: Arc<dyn BlockDevice>,
) -> Arc<Configuration> {
    let mut change = Configuration::empty().change();
    let nqn: Nqn = SUBSYSTEM.parse().unwrap();
    for (id, &(trtype, address)) in (1..).zip(listeners) {
        let address = TransportAddress { trtype, traddr: address.ip(), trsvcid: address.port() };
        change.add_listener(Listener { id: ListenerId(id), address }).unwrap();
    }
    let options = SubsystemOptions { hosts: Hosts::Any, ..SubsystemOptions::default() };
    change.add_subsystem(nqn.clone(), options).unwrap();
    change.add_namespace(&nqn, NamespaceOptions::new(1, device)).unwrap();
    change.build().unwrap()
}

/// Runs `act` on a reactor's thread and waits for what it returns.
pub fn on<T: Send + 'static>(handle: &Handle, act: impl FnOnce(&Local) -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    handle.send(move |local| drop(send.send(act(local)))).unwrap();
    receive.recv().unwrap()
}
