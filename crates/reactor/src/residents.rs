//! What components of one reactor share with each other and with no other reactor: a second ring, a controller's queue.
//!
//! A resident is found by its type and a key of its owner's choice. The registry holds it weakly: it lives as long as a
//! component has it, and the next one to ask after that makes a new one. All on the reactor's thread.
//!
//! Rejected: thread-local variables (a test has several reactors on one thread); owning them (nobody would know when the
//! last component is gone, and one that holds a [`Local`](crate::Local) would keep the reactor alive).

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

#[derive(Default)]
pub(crate) struct Residents(RefCell<BTreeMap<(TypeId, u64), Weak<dyn Any>>>);

impl Residents {
    /// The resident of this type under this key; made, if there is none. `make` may ask for others.
    pub(crate) fn get_or_make<T: 'static, E>(
        &self,
        key: u64,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Rc<T>, E> {
        let name = (TypeId::of::<T>(), key);
        let known = self.0.borrow().get(&name).and_then(Weak::upgrade);
        if let Some(Ok(resident)) = known.map(Rc::downcast) {
            return Ok(resident);
        }
        let resident = Rc::new(make()?);
        let weak: Weak<dyn Any> = Rc::<T>::downgrade(&resident);
        let mut residents = self.0.borrow_mut();
        // Rare enough to look for those that are gone.
        residents.retain(|_, resident| resident.strong_count() > 0);
        residents.insert(name, weak);
        Ok(resident)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make<T>(value: T) -> impl FnOnce() -> Result<T, ()> {
        || Ok(value)
    }

    #[test]
    fn type_and_key_tell_residents_apart() {
        let residents = Residents::default();
        let first = residents.get_or_make(1, make(10_u32)).unwrap();
        let again = residents.get_or_make(1, make(11_u32)).unwrap();
        assert!(Rc::ptr_eq(&first, &again));
        assert_eq!(*residents.get_or_make(2, make(12_u32)).unwrap(), 12);
        assert_eq!(*residents.get_or_make(1, make(13_u64)).unwrap(), 13);
        assert_eq!(*residents.get_or_make(1, make(14_u32)).unwrap(), 10);
    }

    #[test]
    fn a_resident_lives_as_long_as_somebody_has_it() {
        let residents = Residents::default();
        let first = residents.get_or_make(1, make(1_u8)).unwrap();
        let second = Rc::clone(&first);
        drop(first);
        assert_eq!(*residents.get_or_make(1, make(2_u8)).unwrap(), 1);
        drop(second);
        assert_eq!(*residents.get_or_make(1, make(3_u8)).unwrap(), 3);
        assert_eq!(residents.0.borrow().len(), 1);
        drop(residents.get_or_make(2, make(4_u8)).unwrap());
        let _third = residents.get_or_make(3, make(5_u8)).unwrap();
        assert_eq!(residents.0.borrow().len(), 1, "those that are gone are forgotten");
    }

    #[test]
    fn one_that_cannot_be_made_is_tried_again() {
        let residents = Residents::default();
        assert_eq!(residents.get_or_make(1, || Err::<u8, _>("no")).unwrap_err(), "no");
        assert_eq!(*residents.get_or_make(1, make(2_u8)).unwrap(), 2);
    }

    #[test]
    fn a_resident_may_need_another() {
        let residents = Residents::default();
        let outer = residents.get_or_make(1, || {
            let inner = residents.get_or_make(2, make(5_u32))?;
            Ok::<_, ()>(vec![*inner])
        });
        assert_eq!(*outer.unwrap(), [5]);
    }
}
