//! Tables of things that are named by slot and generation.
//!
//! A slot's generation goes up when its thing is removed, so a key that was kept too long finds nothing
//! instead of a stranger. With a fixed capacity a table never allocates after it is made.

use crate::{QueueId, RequestId};

/// Place and generation of a thing in a [`Table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl From<QueueId> for Key {
    fn from(id: QueueId) -> Self {
        Self { slot: id.slot, generation: id.generation }
    }
}

impl From<Key> for QueueId {
    fn from(key: Key) -> Self {
        Self { slot: key.slot, generation: key.generation }
    }
}

impl From<RequestId> for Key {
    fn from(id: RequestId) -> Self {
        Self { slot: id.slot, generation: id.generation }
    }
}

impl From<Key> for RequestId {
    fn from(key: Key) -> Self {
        Self { slot: key.slot, generation: key.generation }
    }
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    thing: Option<T>,
}

/// A bounded table. `K` is the public form of its keys.
#[derive(Debug)]
pub(crate) struct Table<K, T> {
    entries: Vec<Entry<T>>,
    /// Free slots among `entries`; the one freed last is taken first, while it is in the cache.
    free: Vec<u32>,
    /// Most things at a time.
    limit: u32,
    key: std::marker::PhantomData<K>,
}

impl<K: From<Key> + Into<Key>, T> Table<K, T> {
    /// For up to `limit` things, growing as they come.
    pub(crate) fn growing(limit: u32) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), limit, key: std::marker::PhantomData }
    }

    /// For up to `limit` things, with room for all of them from the start.
    pub(crate) fn preallocated(limit: u32) -> Self {
        let entries = (0..limit).map(|_| Entry { generation: 0, thing: None }).collect();
        let free = (0..limit).rev().collect();
        Self { entries, free, limit, key: std::marker::PhantomData }
    }

    /// Slots that are still free.
    pub(crate) fn free(&self) -> u32 {
        self.limit.saturating_sub(self.len())
    }

    /// Things in it.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.entries.len().saturating_sub(self.free.len())).unwrap_or(u32::MAX)
    }

    /// Highest slot there has been, plus one.
    pub(crate) fn slots(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Puts a thing in; gives it back if there is no room.
    pub(crate) fn insert(&mut self, thing: T) -> Result<K, T> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots() < self.limit => {
                let slot = self.slots();
                self.entries.push(Entry { generation: 0, thing: None });
                slot
            }
            None => return Err(thing),
        };
        match self.entries.get_mut(slot as usize) {
            Some(entry) => {
                entry.thing = Some(thing);
                Ok(Key { slot, generation: entry.generation }.into())
            }
            None => Err(thing),
        }
    }

    fn entry(&self, key: Key) -> Option<&Entry<T>> {
        self.entries.get(key.slot as usize).filter(|entry| entry.generation == key.generation)
    }

    /// The thing of this key, if it is still there.
    pub(crate) fn get(&self, key: K) -> Option<&T> {
        self.entry(key.into())?.thing.as_ref()
    }

    /// The same, to change it.
    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut T> {
        let key = key.into();
        self.entries
            .get_mut(key.slot as usize)
            .filter(|entry| entry.generation == key.generation)?
            .thing
            .as_mut()
    }

    /// Takes the thing out; its key is void from now on.
    pub(crate) fn remove(&mut self, key: K) -> Option<T> {
        let key = key.into();
        let entry = self
            .entries
            .get_mut(key.slot as usize)
            .filter(|entry| entry.generation == key.generation)?;
        let thing = entry.thing.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(thing)
    }

    /// What is in this slot now.
    pub(crate) fn at(&self, slot: u32) -> Option<(K, &T)> {
        let entry = self.entries.get(slot as usize)?;
        let key = Key { slot, generation: entry.generation };
        Some((key.into(), entry.thing.as_ref()?))
    }

    /// Everything in it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        (0..self.slots()).filter_map(|slot| self.at(slot))
    }

    /// Every key in it, on the heap: for rare walks that change the table as they go.
    pub(crate) fn keys(&self) -> Vec<K> {
        self.iter().map(|(key, _)| key).collect()
    }

    /// Everything in it, to change.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().filter_map(|entry| entry.thing.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_finds_nothing() {
        let mut table: Table<QueueId, &str> = Table::growing(2);
        let first = table.insert("first").unwrap();
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second").unwrap();
        assert_eq!(second.slot, first.slot);
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&"second"));
    }

    #[test]
    fn the_limit_holds() {
        let mut table: Table<QueueId, u32> = Table::preallocated(2);
        assert_eq!((table.free(), table.len()), (2, 0));
        let one = table.insert(1).unwrap();
        table.insert(2).unwrap();
        assert_eq!(table.insert(3), Err(3));
        table.remove(one);
        assert!(table.insert(4).is_ok());
        assert_eq!(table.iter().count(), 2);
    }
}
