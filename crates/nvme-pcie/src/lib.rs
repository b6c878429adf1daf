//! The driver of local NVMe SSDs, in user space: registers and queues of a controller that the system has handed over, by VFIO.
//!
//! ```text
//!   namespace's queue ─┐                                         ┌─ Function: registers, interrupts, memory
//!   namespace's queue ─┴─ lane ─ seat ─ queue pair ─ doorbells ──┤    vfio: /dev/vfio/GROUP
//!   (one reactor)                                                └    software: memory, stepped by a test
//!   Controller ── life ── session ── admin queue ────────────────┘
//!   (anybody)     (a thread of the controller's own)
//! ```
//!
//! # Which thread
//! Each controller has a thread of its own, which opens it, enables it, asks it who it is, makes its queues, hears its events, aborts what takes too
//! long and resets it ([`Machine`] is what runs there). It may block and is not needed for an I/O. Each reactor has a *lane* to the
//! controller: a queue pair, or a share of one, for all namespaces there. The two meet in one place, `link`, at which a reactor looks once
//! per turn: so nothing on the path of an I/O takes a lock, unless reactors have to share a queue pair.
//!
//! # Memory
//! The arena is mapped for the device when the controller is opened, so a buffer is named by its slab and place and handed over as it is: a
//! read crosses from the SSD to the wire without a copy. What the device may reach, and the driver's own pages, is in [`function`].
//!
//! # What it survives
//! A command that takes too long is aborted, then the controller is reset, then it counts as failed; each is counted and told. What is in
//! the device during a reset is sent again. A device that is taken away fails what is in it, and serves again when it is back.
//!
//! # How it is tested
//! The [`software`] controller is a [`function::Function`], too: registers, doorbells and queues in memory, and strict. All tests run the driver itself on
//! it, natively, with faults from a seed. What VFIO adds is shown on a guest's SSD.
//!
//! [`pci`] says which controllers a machine has and hands them over: `tidegate devices`.

mod admin;
mod controller;
mod counters;
mod doorbell;
pub mod function;
mod lane;
mod life;
mod link;
mod namespace;
mod operation;
mod pages;
pub mod pci;
mod plan;
mod pointers;
mod probe;
mod queue_pair;
mod registers;
mod scan;
mod seat;
mod session;
pub mod software;
mod tasks;
pub mod vfio;

pub use admin::{AdminError, Answer};
pub use controller::{
    AttachError, Controller, Found, Identification, Incidents, Loss, OnTimeout, Options, Phase,
    ResetDone,
};
pub use counters::CounterValues;
pub use life::Machine;
pub use namespace::NamespaceDevice;
pub use pages::Pages;
pub use registers::Registers;
