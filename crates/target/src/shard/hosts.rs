//! Whose queues are on this shard, and how much of the pool each host holds.

use nvme::Nqn;

use super::message::Host;
use super::table::{Key, Table};

/// One host, as long as it has a queue here.
#[derive(Debug)]
pub(crate) struct Entry {
    /// None: the one entry for all queues that have not connected yet.
    pub(crate) host: Option<Host>,
    queues: u32,
    /// Bytes of the pool.
    pub(crate) charged: usize,
    /// Request slots.
    pub(crate) slots: u32,
    /// Request slots set aside for its queues, beside those.
    pub(crate) pledged: u32,
}

/// The hosts of this shard.
#[derive(Debug)]
pub(crate) struct Hosts {
    table: Table<Key, Entry>,
    anonymous: Key,
}

impl Hosts {
    /// For up to `queues` queues, each perhaps of another host.
    pub(crate) fn new(queues: u32) -> Self {
        let mut table = Table::growing(queues.saturating_add(1));
        let anonymous = table
            .insert(Entry { host: None, queues: 0, charged: 0, slots: 0, pledged: 0 })
            .unwrap_or(Key { slot: 0, generation: 0 });
        Self { table, anonymous }
    }

    /// The entry of everyone who has not said who they are.
    pub(crate) fn anonymous(&self) -> Key {
        self.anonymous
    }

    /// What a host calls itself.
    pub(crate) fn name(&self, key: Key) -> Option<&Nqn> {
        Some(&self.table.get(key)?.host.as_ref()?.nqn)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.table.get_mut(key)
    }

    /// Request slots that this host has: those that its commands hold and those set aside for it.
    pub(crate) fn slots(&self, key: Key) -> u32 {
        self.table.get(key).map_or(0, |entry| entry.slots.saturating_add(entry.pledged))
    }

    /// Bytes of the pool that its requests hold.
    pub(crate) fn charged(&self, key: Key) -> usize {
        self.table.get(key).map_or(0, |entry| entry.charged)
    }

    /// Those set aside for it.
    pub(crate) fn pledged(&self, key: Key) -> u32 {
        self.table.get(key).map_or(0, |entry| entry.pledged)
    }

    /// So many more, or fewer, are set aside for it.
    pub(crate) fn add_pledged(&mut self, key: Key, count: u32) {
        if let Some(entry) = self.table.get_mut(key) {
            entry.pledged = entry.pledged.saturating_add(count);
        }
    }

    pub(crate) fn remove_pledged(&mut self, key: Key, count: u32) {
        if let Some(entry) = self.table.get_mut(key) {
            entry.pledged = entry.pledged.saturating_sub(count);
        }
    }

    /// Its commands hold so many more, or fewer.
    pub(crate) fn add_slots(&mut self, key: Key, count: u32) {
        if let Some(entry) = self.table.get_mut(key) {
            entry.slots = entry.slots.saturating_add(count);
        }
    }

    pub(crate) fn remove_slots(&mut self, key: Key, count: u32) {
        if let Some(entry) = self.table.get_mut(key) {
            entry.slots = entry.slots.saturating_sub(count);
        }
    }

    /// Whether `key` is this host.
    pub(crate) fn is(&self, key: Key, host: &Host) -> bool {
        self.table.get(key).is_some_and(|entry| entry.host.as_ref() == Some(host))
    }

    /// A queue of this host joins. A walk over the hosts: Connect is rare.
    pub(crate) fn join(&mut self, host: &Host) -> Key {
        let found = self
            .table
            .iter()
            .find_map(|(key, entry)| (entry.host.as_ref() == Some(host)).then_some(key));
        let key = found.or_else(|| {
            let entry =
                Entry { host: Some(host.clone()), queues: 0, charged: 0, slots: 0, pledged: 0 };
            self.table.insert(entry).ok()
        });
        let key = key.unwrap_or(self.anonymous);
        if let Some(entry) = self.table.get_mut(key) {
            entry.queues += 1;
        }
        key
    }

    /// A queue that had joined is gone.
    pub(crate) fn leave(&mut self, key: Key) {
        if key == self.anonymous {
            return;
        }
        if let Some(entry) = self.table.get_mut(key) {
            entry.queues = entry.queues.saturating_sub(1);
            if entry.queues == 0 {
                self.table.remove(key);
            }
        }
    }
}
