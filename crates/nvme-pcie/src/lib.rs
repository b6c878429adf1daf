//! The driver of local NVMe SSDs, in user space: registers and queues of a controller that the system has handed over, by VFIO.
//!
//! What the driver needs of a PCI function is in [`function`]: registers, interrupts, and which memory the device may reach. There are
//! two of them, VFIO's and that of the software controller, on which every test of the driver runs.

pub mod function;
mod pages;
mod registers;
pub mod software;

pub use pages::Pages;
pub use registers::Registers;
