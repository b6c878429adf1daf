//! What is different between two snapshots: what the later was made by, or what a comparison of pointers finds.

use std::cmp::Ordering;
use std::sync::{Arc, Weak};

use super::{Configuration, Namespace, Subsystem};

/// One subsystem's difference.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// It is new.
    Added(&'a Arc<Subsystem>),
    /// It is gone.
    Removed(&'a Arc<Subsystem>),
    /// It was replaced: its options changed, its namespaces, or both.
    Replaced {
        /// As it was.
        before: &'a Arc<Subsystem>,
        /// As it is.
        after: &'a Arc<Subsystem>,
    },
}

/// The subsystems that differ, in the order of their NQNs. If the one snapshot was made from the other, that costs
/// nothing for those that were not touched; otherwise a comparison of pointers each and, while the lists are in step,
/// one of names.
pub fn changes<'a>(
    before: &'a Arc<Configuration>,
    after: &'a Configuration,
) -> impl Iterator<Item = Change<'a>> {
    let made_from = Weak::as_ptr(&after.base) == Arc::as_ptr(before);
    let touched = made_from
        .then(|| after.touched.iter().map(|nqn| (before.subsystem(nqn), after.subsystem(nqn))));
    let all = (!made_from).then(|| Merge {
        before: before.subsystems(),
        after: after.subsystems(),
        order: |one: &Subsystem, other: &Subsystem| one.nqn().cmp(other.nqn()),
    });
    touched.into_iter().flatten().chain(all.into_iter().flatten()).filter_map(|pair| match pair {
        (None, Some(after)) => Some(Change::Added(after)),
        (Some(before), None) => Some(Change::Removed(before)),
        (Some(before), Some(after)) => Some(Change::Replaced { before, after }),
        (None, None) => None,
    })
}

/// The NSIDs of a subsystem whose attributes or presence differ, in ascending order: what a host is told
/// by a changed-namespace notice and log page 04h.
pub fn changed_namespaces<'a>(
    before: &'a Subsystem,
    after: &'a Subsystem,
) -> impl Iterator<Item = u32> + 'a {
    let pairs = Merge {
        before: before.namespaces(),
        after: after.namespaces(),
        order: |one: &Namespace, other: &Namespace| one.nsid().cmp(&other.nsid()),
    };
    pairs.filter_map(|(before, after)| before.or(after).map(|namespace| namespace.nsid()))
}

/// Walks two sorted lists in step and yields what is not the same object in both.
struct Merge<'a, T, F> {
    before: &'a [Arc<T>],
    after: &'a [Arc<T>],
    order: F,
}

impl<'a, T, F: Fn(&T, &T) -> Ordering> Iterator for Merge<'a, T, F> {
    type Item = (Option<&'a Arc<T>>, Option<&'a Arc<T>>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.before.first(), self.after.first()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(other)) if Arc::ptr_eq(one, other) => {
                    self.take_before();
                    self.take_after();
                    continue;
                }
                (Some(one), Some(other)) => (self.order)(one, other),
            };
            return Some(match order {
                Ordering::Less => (self.take_before(), None),
                Ordering::Greater => (None, self.take_after()),
                Ordering::Equal => (self.take_before(), self.take_after()),
            });
        }
    }
}

impl<'a, T, F> Merge<'a, T, F> {
    fn take_before(&mut self) -> Option<&'a Arc<T>> {
        let (first, rest) = self.before.split_first()?;
        self.before = rest;
        Some(first)
    }

    fn take_after(&mut self) -> Option<&'a Arc<T>> {
        let (first, rest) = self.after.split_first()?;
        self.after = rest;
        Some(first)
    }
}
