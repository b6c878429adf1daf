//! The function, as a driver has it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Controller;
use crate::Registers;
use crate::function::{Function, Mapping};

/// A software controller that somebody has opened.
#[derive(Debug)]
pub(super) struct SoftFunction {
    pub(super) controller: Controller,
    pub(super) address: String,
    pub(super) registers: Registers,
    pub(super) vectors: u16,
    /// Readable when it is wanted back.
    pub(super) wanted: Arc<OwnedFd>,
}

impl Function for SoftFunction {
    fn address(&self) -> &str {
        &self.address
    }

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn map(&self, mapping: Mapping) -> io::Result<()> {
        let (iova, len) = (mapping.iova(), mapping.len());
        let mut world = self.controller.world();
        if !world.alive {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if world.reach.add(mapping) {
            return Ok(());
        }
        world.violate(format!("{len} bytes at {iova:#x} mapped over something"));
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn unmap(&self, iova: u64) {
        self.controller.world().unmap(iova);
    }

    fn reset(&self) -> io::Result<()> {
        let mut world = self.controller.world();
        if !world.options.function_reset {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if !world.alive {
            return Err(io::ErrorKind::NotConnected.into());
        }
        world.reset_function();
        Ok(())
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn connect(&self, eventfds: Vec<OwnedFd>) -> io::Result<()> {
        let mut world = self.controller.world();
        if world.interrupts.connect(eventfds) {
            return Ok(());
        }
        world.violate("more eventfds connected than there are vectors".to_owned());
        Err(io::ErrorKind::InvalidInput.into())
    }

    fn mask(&self, vector: u16) {
        self.set_mask(vector, true);
    }

    fn unmask(&self, vector: u16) {
        self.set_mask(vector, false);
    }

    fn wanted_back(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wanted.as_fd())
    }
}

impl SoftFunction {
    fn set_mask(&self, vector: u16, masked: bool) {
        let mut world = self.controller.world();
        if !world.interrupts.set_mask(vector, masked) {
            world.violate(format!("vector {vector} masked or unmasked, which does not exist"));
        }
    }
}

impl Drop for SoftFunction {
    fn drop(&mut self) {
        self.controller.world().close();
    }
}
