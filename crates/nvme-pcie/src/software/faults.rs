//! What goes wrong, because a test says so or because chance does.

use nvme::{Status, admin, io};

use super::world::{Command, Stage, World};

/// Which command a fault is for: the next one that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Any.
    Any,
    /// Any of an I/O queue.
    AnyIo,
    /// One of the admin queue.
    Admin(admin::Opcode),
    /// One of an I/O queue.
    Io(io::Opcode),
}

impl Target {
    fn is(self, command: &Command) -> bool {
        let (admin, opcode) = (command.sqid == 0, command.sqe.opcode);
        match self {
            Target::Any => true,
            Target::AnyIo => !admin,
            Target::Admin(wanted) => admin && wanted.code() == opcode,
            Target::Io(wanted) => !admin && wanted.code() == opcode,
        }
    }
}

/// What happens to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It ends with this status. An I/O command may have been carried out all the same.
    Fails(Status),
    /// It is never completed, unless it is aborted or its queue goes.
    Hangs,
    /// It is carried out so many steps later than it could be.
    Late(u32),
    /// Its completion comes twice.
    Duplicate,
    /// Its completion names this submission queue; none comes that names its own.
    WrongQueue(u16),
    /// The controller fails for good when it takes it (CSTS.CFS).
    Fatal,
}

/// Faults that are to come, and those that last.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) planned: Vec<(Target, Fault)>,
    pub(super) never_ready: bool,
    pub(super) never_not_ready: bool,
    /// So many interrupts are lost.
    pub(super) lost_interrupts: u32,
}

impl Faults {
    pub(super) fn lose_interrupt(&mut self) -> bool {
        let loses = self.lost_interrupts > 0;
        self.lost_interrupts -= u32::from(loses);
        loses
    }
}

/// Statuses after which a driver should try again.
const TRANSIENT: [Status; 4] = [
    Status::INTERNAL_ERROR,
    Status::COMMAND_INTERRUPTED,
    Status::TRANSIENT_TRANSPORT_ERROR,
    Status::NAMESPACE_NOT_READY,
];

impl World {
    /// Decides what becomes of a command that was just taken.
    pub(super) fn afflict(&mut self, command: &mut Command) {
        let planned = &mut self.faults.planned;
        if let Some(index) = planned.iter().position(|(target, _)| target.is(command)) {
            let (_, fault) = planned.remove(index);
            return self.apply(command, fault);
        }
        let chaos = self.options.chaos;
        let is = |opcode: admin::Opcode| command.sqid == 0 && command.sqe.opcode == opcode.code();
        if is(admin::Opcode::AsynchronousEventRequest) {
            return;
        }
        if is(admin::Opcode::Abort) {
            if self.random.million(chaos.lost_abort) {
                command.stage = Stage::Hung;
            }
            return;
        }
        let permanent = match io::Opcode::try_from(command.sqe.opcode) {
            Ok(io::Opcode::Write) => Status::WRITE_FAULT,
            _ => Status::UNRECOVERED_READ_ERROR,
        };
        let again = TRANSIENT.get(self.random.index(TRANSIENT.len()));
        let again = *again.unwrap_or(&Status::INTERNAL_ERROR);
        let late = u32::try_from(self.random.number() % 1000).unwrap_or(1);
        for (share, fault) in [
            (chaos.fatal, Fault::Fatal),
            (chaos.hang, Fault::Hangs),
            (chaos.transient, Fault::Fails(again)),
            (chaos.permanent, Fault::Fails(permanent.with_dnr())),
            (chaos.late, Fault::Late(late + 1)),
            (chaos.duplicate, Fault::Duplicate),
            (chaos.wrong_queue, Fault::WrongQueue(command.sqid ^ 0x4000)),
        ] {
            if self.random.million(share) {
                return self.apply(command, fault);
            }
        }
    }

    fn apply(&mut self, command: &mut Command, fault: Fault) {
        match fault {
            Fault::Fails(status) => command.fail = Some(status),
            Fault::Hangs => command.stage = Stage::Hung,
            Fault::Late(steps) => command.stage = Stage::Late(steps),
            Fault::Duplicate => command.duplicate = true,
            Fault::WrongQueue(sqid) => command.wrong_queue = Some(sqid),
            Fault::Fatal => self.fail(),
        }
    }
}
