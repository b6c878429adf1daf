//! What a RAM device lends goes out from where it is, if its medium is registered with the domain; otherwise it is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::sync::Arc;

use memory::{Lender, Segment, SharedMemory};
use verbs::{Access, Flags, Parameters, RegisteredArena, Remote, SendChain, VerbsError, Work};

use crate::support::{Driver, End, Shape, TARGET, bytes_of, connected, registered, software};

const LENGTH: usize = 64 << 10;

fn lender(end: &End) -> Lender {
    let lender = Lender::new(Arc::new(SharedMemory::new("ram", LENGTH).unwrap()));
    let data: Vec<u8> = (0_u8..=255).cycle().take(LENGTH).collect();
    for (at, part) in data.chunks(4096).enumerate() {
        let at = at as u64 * 4096;
        assert!(lender.claim(at, part.len()).unwrap().write(at, &end.filled(part)));
    }
    lender
}

/// The target writes this to the host, which finds it there.
fn write(driver: &Driver, host: &End, target: &mut End, lent: Segment) -> Result<(), VerbsError> {
    let (into, expected) = (host.buffer(&vec![0; lent.len()]), bytes_of(&lent));
    let into = into.segment(0, lent.len()).unwrap();
    let at = host.memory.remote(&into).unwrap();
    let mut chain = SendChain::new(2, 2);
    chain.push(Work::Write(at), Flags::SIGNALED, 1, &target.memory, [lent])?;
    target.queue.post(&mut chain).unwrap();
    let completion = driver.until("the write", || target.poll_one());
    assert_eq!(completion.status(), verbs::Status::SUCCESS);
    assert!(bytes_of(&into) == expected);
    Ok(())
}

#[test]
fn lent_memory_goes_out_by_its_own_key() {
    let (fabric, host, target) = software(1);
    let driver = Driver(Some(fabric.clone()));
    let shapes = (Shape::default(), Shape::default());
    let at = TARGET.parse().unwrap();
    let (host, mut target) =
        connected(&driver, (&host, &target), at, shapes, Parameters::default());
    let (lender, other) = (lender(&target), lender(&target));
    let lease = |lender: &Lender| lender.lend(5000, 20000).unwrap();

    let refused = write(&driver, &host, &mut target, lease(&lender));
    assert!(matches!(refused, Err(VerbsError::Misuse(_))), "{refused:?}");
    target.memory.register_medium(lender.medium()).unwrap();
    target.memory.register_medium(lender.medium()).unwrap();
    assert!(lender.medium().key(target.memory.id()).is_some());
    assert!(lender.medium().key(host.memory.id()).is_none(), "another domain");
    write(&driver, &host, &mut target, lease(&lender)).unwrap();
    write(&driver, &host, &mut target, lease(&lender).part(100, 200).unwrap()).unwrap();
    assert!(write(&driver, &host, &mut target, lease(&other)).is_err(), "another medium");

    // Nobody is given a key to it, and nothing is received or read into it.
    assert_eq!(target.memory.remote(&lease(&lender)), None);
    let mut chain = SendChain::new(2, 2);
    let from = Remote { address: 0, key: 0 };
    let read = chain.push(Work::Read(from), Flags::SIGNALED, 1, &target.memory, [lease(&lender)]);
    assert!(matches!(read, Err(VerbsError::Misuse(_))));
    let shared = target.shared.as_mut().unwrap();
    assert!(shared.push(1, &target.memory, [Some(lease(&lender)), None]).is_err());
    assert!(lender.claim(0, LENGTH).unwrap().is_free(), "all leases have ended");

    // A write that comes while one is on its way waits for it.
    let into = host.filled(&[0; 4096]);
    let remote = host.memory.remote(&into).unwrap();
    let lent = lender.lend(0, 4096).unwrap();
    let before = bytes_of(&lent);
    chain.push(Work::Write(remote), Flags::SIGNALED, 2, &target.memory, [lent]).unwrap();
    target.queue.post(&mut chain).unwrap();
    let mut claim = lender.claim(0, 4096).unwrap();
    assert!(!claim.write(0, &target.filled(&[1; 4096])));
    driver.until("the write", || target.poll_one());
    assert!(claim.write(0, &target.filled(&[1; 4096])));
    assert!(bytes_of(&into) == before);
}

#[test]
fn a_registration_ends_with_its_medium_or_its_domain() {
    let (fabric, _host, library) = software(2);
    let device = library.devices().unwrap().remove(0);
    let domain = verbs::Domain::new(&device).unwrap();
    let regions = |fabric: &verbs::Fabric| fabric.census();
    let none = regions(&fabric);
    let (memory, _pool) = registered(&domain, Access::all());
    let with_slabs = regions(&fabric);
    assert_ne!(none, with_slabs);
    let medium = Arc::new(SharedMemory::new("ram", LENGTH).unwrap());
    memory.register_medium(&medium).unwrap();
    assert_ne!(regions(&fabric), with_slabs);
    drop(medium);
    assert_eq!(regions(&fabric), with_slabs);
    let medium = Arc::new(SharedMemory::new("ram", LENGTH).unwrap());
    memory.register_medium(&medium).unwrap();
    let id = memory.id();
    drop(memory);
    assert_eq!((regions(&fabric), medium.key(id)), (none, None));
    let arena = memory::Arena::for_peers(memory::ArenaConfig {
        capacity: memory::SLAB_SIZE,
        hugepages: memory::Hugepages::Never,
    });
    let again = RegisteredArena::new(&domain, &arena, Access::all()).unwrap();
    again.register_medium(&medium).unwrap();
    assert!(medium.key(again.id()).is_some() && again.id() != id);
}
