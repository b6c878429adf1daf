//! What goes wrong with a device, and what becomes of the operations in it.

use std::time::Duration;

use block::{Data, ErrorKind, Kind};
use nvme::{Status, admin, io};
use nvme_pcie::software::{Fault, NamespaceOptions, Options, Target};
use nvme_pcie::{Options as Settings, Phase};

use crate::rig::Rig;

/// Reads block 0 of namespace 1 and does not wait.
fn read_one(rig: &mut Rig) -> block::Token {
    let buffer = rig.buffer(0, 512);
    rig.submit(0, 1, Kind::Read, (0, 1), buffer.segment(0, 512).unwrap().into())
}

fn served() -> Rig {
    Rig::served(3, Options::default(), 1)
}

#[test]
fn a_command_that_hangs_is_aborted_and_sent_again() {
    let mut rig = served();
    rig.soft.write_medium(1, 0, &[7; 512]);
    rig.soft.plan(Target::Io(io::Opcode::Read), Fault::Hangs);
    assert_eq!(rig.read(1, 0, 1), Ok(vec![7; 512]));
    let incidents = rig.controller.incidents();
    assert_eq!((incidents.aborts, incidents.resets), (1, 0));
    assert_eq!(rig.soft.admin_commands(admin::Opcode::Abort), 1);
    let counted = rig.controller.counters()[0];
    assert_eq!((counted.timeouts, counted.retries), (1, 1));
    rig.end();
}

#[test]
fn one_that_cannot_be_aborted_leads_to_a_reset_and_is_sent_again() {
    let mut rig = served();
    rig.soft.set_aborts(0);
    rig.soft.plan(Target::Io(io::Opcode::Write), Fault::Hangs);
    assert_eq!(rig.write(1, 4, &[5; 1024]), Ok(()));
    assert_eq!(rig.soft.read_medium(1, 4, 2), [5; 1024]);
    let incidents = rig.controller.incidents();
    assert_eq!((incidents.aborts, incidents.resets), (1, 1));
    assert_eq!(rig.controller.phase(), Phase::Live);
    rig.end();
}

#[test]
fn one_that_hangs_for_ever_is_answered_in_the_end() {
    let mut rig = served();
    for _ in 0..20 {
        rig.soft.plan(Target::Io(io::Opcode::Read), Fault::Hangs);
    }
    assert_eq!(rig.read(1, 0, 1), Err(ErrorKind::Status { sct: 0, sc: 0x07 }));
    rig.end();
}

#[test]
fn a_fatal_error_is_reset_away() {
    let mut rig = served();
    rig.soft.plan(Target::AnyIo, Fault::Fatal);
    assert_eq!(rig.write(1, 1, &[1; 512]), Ok(()));
    assert_eq!(rig.read(1, 1, 1), Ok(vec![1; 512]));
    let incidents = rig.controller.incidents();
    assert_eq!((incidents.fatal, incidents.resets), (1, 1));
    rig.end();
}

#[test]
fn a_status_that_says_so_is_tried_again_and_others_are_passed_on() {
    let mut rig = served();
    rig.soft.plan(Target::AnyIo, Fault::Fails(Status::NAMESPACE_NOT_READY));
    rig.soft.plan(Target::AnyIo, Fault::Fails(Status::COMMAND_INTERRUPTED));
    assert_eq!(rig.read(1, 0, 1), Ok(vec![0; 512]));
    rig.soft.plan(Target::AnyIo, Fault::Fails(Status::NAMESPACE_NOT_READY.with_dnr()));
    assert_eq!(rig.read(1, 0, 1), Err(ErrorKind::Status { sct: 0, sc: 0x82 }));
    rig.soft.plan(Target::AnyIo, Fault::Fails(Status::UNRECOVERED_READ_ERROR));
    assert_eq!(rig.read(1, 0, 1), Err(ErrorKind::Status { sct: 2, sc: 0x81 }));
    rig.end();
}

#[test]
fn completions_of_nothing_are_counted_and_harm_nobody() {
    let mut rig = served();
    rig.soft.ghost(1, 0x3FF);
    rig.soft.ghost(1, 0xFFFF);
    rig.soft.ghost(0, 0x123);
    rig.soft.plan(Target::AnyIo, Fault::Duplicate);
    assert_eq!(rig.write(1, 0, &[3; 512]), Ok(()));
    for _ in 0..20 {
        assert_eq!(rig.read(1, 0, 1), Ok(vec![3; 512]));
    }
    rig.until("all of them are seen", |rig| {
        rig.clock.advance(Duration::from_millis(100));
        let counted = rig.controller.counters()[0].stray_completions;
        (counted, rig.controller.incidents().stray_completions) == (3, 1)
    });
    rig.end();
}

#[test]
fn a_completion_under_another_queues_name_is_none() {
    let mut rig = served();
    rig.soft.plan(Target::AnyIo, Fault::WrongQueue(7));
    // The command itself is never completed then: it takes a reset.
    assert_eq!(rig.read(1, 0, 1), Ok(vec![0; 512]));
    assert_eq!(rig.controller.counters()[0].stray_completions, 1);
    assert_eq!(rig.controller.incidents().resets, 1);
    rig.end();
}

#[test]
fn a_device_that_is_taken_away_fails_what_is_in_it_and_serves_again_when_it_is_back() {
    for announced in [true, false] {
        let mut rig = served();
        rig.write(1, 0, &[9; 512]).unwrap();
        let tokens: Vec<_> = (0..50).map(|_| read_one(&mut rig)).collect();
        rig.step(20);
        if announced {
            rig.soft.remove();
        } else {
            rig.soft.remove_by_surprise();
        }
        let mut results = Vec::new();
        rig.until("all are answered", |rig| {
            results.extend(tokens.iter().filter_map(|token| rig.result(*token)));
            results.len() == 50
        });
        assert!(results.contains(&Err(ErrorKind::Removed)));
        assert!(results.iter().all(|it| matches!(it, Ok(()) | Err(ErrorKind::Removed))));
        assert!(matches!(rig.controller.phase(), Phase::Gone(_)));
        // It is let go of, or the system could not take it out.
        assert!(!rig.soft.is_open());
        assert_eq!(rig.read(1, 0, 1), Err(ErrorKind::Removed));
        rig.soft.insert();
        rig.until("it is back", |rig| {
            rig.clock.advance(Duration::from_millis(100));
            rig.controller.phase() == Phase::Live
        });
        assert_eq!(rig.read(1, 0, 1), Ok(vec![9; 512]));
        assert_eq!(rig.controller.incidents().removals, 1);
        rig.end();
    }
}

#[test]
fn one_that_does_not_become_ready_again_has_failed_until_it_does() {
    let mut rig = served();
    rig.write(1, 0, &[9; 512]).unwrap();
    rig.soft.set_never_ready(true);
    rig.soft.fail();
    assert_eq!(rig.read(1, 0, 1), Err(ErrorKind::Removed));
    assert!(matches!(rig.controller.phase(), Phase::Gone(_)));
    assert_eq!(rig.controller.incidents().failures, 1);
    rig.soft.set_never_ready(false);
    rig.until("it is back", |rig| {
        rig.clock.advance(Duration::from_millis(100));
        rig.controller.phase() == Phase::Live
    });
    assert_eq!(rig.read(1, 0, 1), Ok(vec![9; 512]));
    rig.end();
}

#[test]
fn one_that_does_not_stop_is_stopped_by_its_function() {
    let mut rig = served();
    rig.soft.set_never_not_ready(true);
    rig.controller.reset();
    rig.until("it is reset", |rig| rig.controller.incidents().resets == 1);
    rig.until("it is back", |rig| rig.controller.phase() == Phase::Live);
    assert_eq!(rig.read(1, 0, 1), Ok(vec![0; 512]));
    rig.soft.set_never_not_ready(false);
    rig.end();
}

#[test]
fn what_is_in_it_survives_a_reset_that_somebody_asks_for() {
    let mut rig = served();
    let buffer = rig.filled(0, &vec![4; 64 << 10]);
    let data = || Data::from(buffer.segment(0, 64 << 10).unwrap());
    let tokens: Vec<_> =
        (0..30).map(|at| rig.submit(0, 1, Kind::Write, (at * 128, 128), data())).collect();
    rig.step(30);
    rig.controller.reset();
    let mut done = 0;
    rig.until("all are answered", |rig| {
        done += tokens.iter().filter(|token| rig.result(**token) == Some(Ok(()))).count();
        done == 30
    });
    assert_eq!(rig.controller.incidents().resets, 1);
    assert_eq!(rig.soft.read_medium(1, 29 * 128, 128), vec![4; 64 << 10]);
    drop(buffer);
    rig.end();
}

#[test]
fn one_that_cannot_be_attached_says_why() {
    let odd = |options: Options| {
        let mut rig = Rig::new(1, options, 1, &Settings::default());
        rig.attach();
        let problem = rig.answer.clone().unwrap().unwrap_err().to_string();
        assert!(!rig.soft.is_open());
        assert_eq!(rig.soft.violations(), Vec::<String>::new());
        problem
    };
    let problem = odd(Options { mpsmin: 2, ..Options::default() });
    assert!(problem.contains("its smallest page is 16 KiB"), "{problem}");
    let mut rig = Rig::new(1, Options::default(), 1, &Settings::default());
    rig.soft.set_never_ready(true);
    rig.attach();
    let problem = rig.answer.clone().unwrap().unwrap_err().to_string();
    assert!(problem.contains("NVMe controller soft: it is not ready within 10s"), "{problem}");
}

#[test]
fn namespaces_with_metadata_are_left_out_by_name() {
    let odd = |nsid, metadata, extended| NamespaceOptions {
        metadata,
        extended,
        ..NamespaceOptions::new(nsid, 512, 64)
    };
    let namespaces = vec![
        NamespaceOptions::new(1, 512, 64),
        odd(2, 8, false),
        odd(3, 16, true),
        NamespaceOptions::new(4, 8192, 64),
    ];
    let rig = Rig::served(1, Options { namespaces, ..Options::default() }, 1);
    let found = rig.controller.namespaces(|nsid| nsid.to_string());
    assert!(found[&1].is_ok());
    let why = |nsid| found[&nsid].as_ref().unwrap_err().clone();
    assert!(why(2).contains("8 bytes of metadata for 512 bytes of data, in a buffer of its own"));
    assert!(why(3).contains("16 bytes of metadata for 512 bytes of data, interleaved"));
    assert!(why(4).contains("blocks of 8192 bytes are not supported"));
    drop(found);
    rig.end();
}

#[test]
fn namespaces_come_go_and_grow_while_it_serves() {
    let mut rig = served();
    let size = |rig: &Rig, nsid| {
        let found = rig.controller.namespaces(|_| String::new()).remove(&nsid)?;
        Some(block::BlockDevice::geometry(&found.unwrap()))
    };
    rig.soft.add_namespace(&NamespaceOptions::new(2, 4096, 100));
    rig.until("it is found", |rig| size(rig, 2).is_some_and(|it| it.blocks == 100));
    rig.open();
    assert_eq!(rig.write(2, 99, &[1; 4096]), Ok(()));
    let before = size(&rig, 2).unwrap().generation;
    rig.soft.resize_namespace(2, 200);
    rig.until("it has grown", |rig| size(rig, 2).is_some_and(|it| it.blocks == 200));
    assert!(size(&rig, 2).unwrap().generation != before);
    assert_eq!(rig.write(2, 199, &[1; 4096]), Ok(()));
    rig.soft.remove_namespace(2);
    rig.until("it is missed", |rig| size(rig, 2).is_none());
    let buffer = rig.buffer(0, 4096);
    let gone = rig.submit(0, 2, Kind::Read, (0, 1), buffer.segment(0, 4096).unwrap().into());
    rig.step(1);
    assert_eq!(rig.result(gone), Some(Err(ErrorKind::Removed)));
    assert_eq!(rig.read(1, 0, 1), Ok(vec![0; 512]));
    drop(buffer);
    rig.end();
}
