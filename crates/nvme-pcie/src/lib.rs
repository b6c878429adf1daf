//! The driver of local NVMe SSDs, in user space: registers and queues of a controller that the system has handed over, by VFIO.
//!
//! What the driver needs of a PCI function is in [`function`]: registers, interrupts, and which memory the device may reach. There are
//! two of them, VFIO's and that of the software controller, on which every test of the driver runs.

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
