//! What an operator chooses: resets, what becomes of slow commands and of lost controllers.

use std::sync::mpsc;
use std::time::Duration;

use block::{ErrorKind, Kind, Token};
use nvme::{Status, admin, io};
use nvme_pcie::software::{Fault, NamespaceOptions, Options, Target};
use nvme_pcie::{AdminError, Loss, OnTimeout, Options as Settings, Phase};

use crate::rig::Rig;

const SECOND: Duration = Duration::from_secs(1);

/// One that is in service and driven so.
fn served(soft: Options, reactors: usize, settings: &Settings) -> Rig {
    let mut rig = Rig::new(5, soft, reactors, settings);
    rig.attach();
    assert_eq!(rig.answer, Some(Ok(())));
    rig.open();
    rig
}

fn read_one(rig: &mut Rig) -> Token {
    let buffer = rig.buffer(0, 512);
    rig.submit(0, 1, Kind::Read, (0, 1), buffer.segment(0, 512).unwrap().into())
}

/// The end of an operation, and how long it took.
fn end_of(rig: &mut Rig, token: Token) -> (Result<(), ErrorKind>, Duration) {
    let (since, mut result) = (rig.clock.now(), None);
    rig.until("an operation", |rig| {
        result = rig.result(token);
        result.is_some()
    });
    (result.unwrap(), rig.clock.now().since(since))
}

/// What a reset comes to.
fn reset(rig: &mut Rig) -> Result<(), String> {
    let (done, told) = mpsc::channel();
    rig.controller.reset_and_tell(done);
    let mut outcome = None;
    rig.until("what became of the reset", |_| {
        outcome = told.try_recv().ok();
        outcome.is_some()
    });
    outcome.unwrap()
}

#[test]
fn however_often_it_is_reset_by_wish_it_serves_and_loses_nothing() {
    let mut rig = served(Options::default(), 2, &Settings::default());
    for round in 0..20_u8 {
        rig.write(1, 0, &[round; 512]).unwrap();
        let tokens: Vec<_> = (0..10).map(|_| read_one(&mut rig)).collect();
        rig.step(usize::from(round));
        assert_eq!(reset(&mut rig), Ok(()));
        assert_eq!(rig.controller.phase(), Phase::Live);
        for token in tokens {
            assert_eq!(end_of(&mut rig, token).0, Ok(()));
        }
        assert_eq!(rig.read(1, 0, 1), Ok(vec![round; 512]));
    }
    let incidents = rig.controller.incidents();
    assert_eq!((incidents.resets, incidents.failures), (20, 0));
    rig.end();
}

#[test]
fn a_reset_that_fails_is_told_of_and_one_of_what_is_not_there_looks_for_it() {
    let mut rig = served(Options::default(), 1, &Settings::default());
    rig.soft.remove();
    rig.until("gone", |rig| matches!(rig.controller.phase(), Phase::Gone(_)));
    let refused = reset(&mut rig).unwrap_err();
    assert!(refused.contains("there is nothing at 0000:5e:00.0"), "{refused}");
    rig.soft.insert();
    assert_eq!(reset(&mut rig), Ok(()));
    let (done, told) = mpsc::channel();
    rig.controller.reset_and_tell(done);
    rig.end();
    assert!(told.recv().is_ok_and(|told| told.is_err()), "it was detached before");
}

#[test]
fn commands_wait_for_a_lost_controller_as_long_as_they_are_told_to() {
    let lost = |loss: Loss| {
        let mut rig = served(Options::default(), 1, &Settings { loss, ..Settings::default() });
        rig.write(1, 0, &[4; 512]).unwrap();
        rig.soft.remove();
        rig.until("gone", |rig| matches!(rig.controller.phase(), Phase::Gone(_)));
        rig
    };
    let interval = Some(SECOND);
    // Five seconds, then they fail, and it is looked for no longer than ten.
    let mut rig = lost(Loss { interval, look: Some(10 * SECOND), hold: Some(5 * SECOND) });
    let token = read_one(&mut rig);
    let (result, took) = end_of(&mut rig, token);
    assert_eq!(result, Err(ErrorKind::Removed));
    assert!(took > 4 * SECOND && took < 6 * SECOND, "{took:?}");
    let token = read_one(&mut rig);
    let (result, took) = end_of(&mut rig, token);
    assert_eq!(result, Err(ErrorKind::Removed));
    assert!(took < SECOND, "{took:?}");
    for _ in 0..1000 {
        rig.clock.advance(SECOND / 50);
        rig.turn();
    }
    rig.soft.insert();
    for _ in 0..1000 {
        rig.clock.advance(SECOND / 10);
        rig.step(4);
    }
    assert!(matches!(rig.controller.phase(), Phase::Gone(_)), "nobody looks for it any more");
    assert_eq!(reset(&mut rig), Ok(()));
    assert_eq!(rig.read(1, 0, 1), Ok(vec![4; 512]));
    rig.end();
    // As long as it is looked for, which is for ever: it comes back and answers.
    let mut rig = lost(Loss { interval, look: None, hold: None });
    let token = read_one(&mut rig);
    for _ in 0..1000 {
        rig.clock.advance(SECOND);
        rig.turn();
    }
    assert_eq!(rig.result(token), None);
    rig.soft.insert();
    assert_eq!(end_of(&mut rig, token).0, Ok(()));
    rig.end();
}

#[test]
fn what_waits_for_a_controller_does_not_reach_another_namespace_in_the_place_of_its_own() {
    let loss = Loss { interval: Some(SECOND), look: None, hold: None };
    let mut rig = served(Options::default(), 1, &Settings { loss, ..Settings::default() });
    rig.soft.remove();
    rig.until("gone", |rig| matches!(rig.controller.phase(), Phase::Gone(_)));
    let mut buffer = rig.buffer(0, 4096);
    buffer.bytes_mut().unwrap().fill(0xEE);
    let token = rig.submit(0, 1, Kind::Write, (0, 8), buffer.segment(0, 4096).unwrap().into());
    drop(buffer);
    rig.soft.add_namespace(&NamespaceOptions::new(1, 4096, 1000));
    rig.soft.insert();
    assert_eq!(end_of(&mut rig, token).0, Err(ErrorKind::Removed));
    assert_eq!(rig.soft.allocated(1), 0);
    rig.end();
}

#[test]
fn what_becomes_of_slow_commands_is_a_choice() {
    let slow = |on_timeout: OnTimeout| {
        let settings = Settings { on_timeout, timeout: SECOND, ..Settings::default() };
        let mut rig = served(Options::default(), 1, &settings);
        rig.soft.plan(Target::Io(io::Opcode::Read), Fault::Hangs);
        (read_one(&mut rig), rig)
    };
    let (token, mut rig) = slow(OnTimeout::Reset);
    let (result, took) = end_of(&mut rig, token);
    assert_eq!(result, Ok(()));
    assert!(took < 3 * SECOND, "{took:?}");
    let incidents = rig.controller.incidents();
    assert_eq!((incidents.aborts, incidents.resets), (0, 1));
    rig.end();
    let (token, mut rig) = slow(OnTimeout::Nothing);
    for _ in 0..1000 {
        rig.clock.advance(SECOND / 10);
        rig.step(4);
    }
    assert_eq!(rig.result(token), None);
    assert_eq!(rig.controller.incidents().aborts, 0);
    assert_eq!(rig.controller.counters()[0].timeouts, 1);
    // Hung as it is, an operator can help.
    assert_eq!(reset(&mut rig), Ok(()));
    assert_eq!(end_of(&mut rig, token).0, Ok(()));
    rig.end();
}

#[test]
fn it_has_no_more_queues_than_it_may() {
    for (io_queues, pairs) in [(1, 1), (2, 2), (3, 3), (4, 3)] {
        let mut rig = served(Options::default(), 3, &Settings { io_queues, ..Settings::default() });
        assert_eq!(rig.soft.queues().submission.len(), pairs);
        rig.write(1, 0, &[1; 512]).unwrap();
        rig.end();
    }
}

#[test]
fn whatever_it_says_to_somebody_elses_command_is_an_answer() {
    let mut rig = served(Options::default(), 1, &Settings::default());
    let (done, told) = mpsc::channel();
    let ask = |rig: &mut Rig, sqe| {
        rig.controller.admin(sqe, 0, Vec::new(), None, done.clone()).unwrap();
        let mut answer = None;
        rig.until("an answer", |_| {
            answer = told.try_recv().ok();
            answer.is_some()
        });
        answer.unwrap()
    };
    let unknown = nvme::Sqe { opcode: 0xC0, ..nvme::Sqe::default() };
    let status = ask(&mut rig, unknown).unwrap().completion.status();
    assert!(status.same_code(Status::INVALID_OPCODE), "{status}");
    rig.soft.forgive();
    rig.soft.remove();
    rig.until("gone", |rig| matches!(rig.controller.phase(), Phase::Gone(_)));
    let keep_alive = admin::Command::KeepAlive.to_sqe(0);
    assert_eq!(ask(&mut rig, keep_alive), Err(AdminError::NotInService));
    rig.end();
}

#[test]
fn queues_that_are_closed_and_opened_again_serve_as_before() {
    let mut rig = served(Options::default(), 2, &Settings::default());
    for round in 0..10_u8 {
        rig.write(1, 0, &[round; 512]).unwrap();
        for inside in &rig.insides {
            inside.borrow_mut().queues.clear();
        }
        for _ in 0..5 {
            rig.turn();
        }
        if round % 3 == 0 {
            assert_eq!(reset(&mut rig), Ok(()));
        }
        rig.open();
        assert_eq!(rig.read(1, 0, 1), Ok(vec![round; 512]));
    }
    assert_eq!(rig.controller.incidents().resets, 4, "none but those asked for");
    rig.end();
}
