//! An NVMe-oF initiator in user space: what perf, discover, identify and the tests are built on.
//!
//! Two layers. A [`Queue`] is submitted to and polled, and never blocks. Over TCP it moves commands and data for many I/Os with one
//! system call each way: it is a [`Machine`], which knows NVMe/TCP and no socket, and a socket that knows nothing else. Over RDMA
//! it is an endpoint of [`verbs`], whose memory the controller reads and writes; both keep the same book of slots. A
//! [`Controller`] is the blocking side: it connects, enables, identifies, reads logs, and opens queues.
//!
//! Any thread may own a queue or a controller, one at a time. Memory for data belongs to the queue's slots, so that no
//! command can outlive its buffer and nothing is allocated per I/O. Events of an RDMA connection are handled by whoever owns
//! the queue, when it sleeps or something fails. Rejected: buffers of the caller (lifetimes that last until the peer answers
//! cannot be expressed safely), an asynchronous runtime (a wake-up per I/O where a batch is wanted), a thread for events of
//! connections (a lock between it and every queue).
//!
//! ```no_run
//! use host::{ConnectOptions, Controller, HostIdentity, Transfer};
//! use nvme::io::{Command, Transfer as Blocks};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = HostIdentity::resolve(None, None)?;
//! let address = "127.0.0.1:4420".parse()?;
//! let subsystem = "nqn.2026-11.io.tidegate:quickstart".parse()?;
//! let mut controller = Controller::connect(ConnectOptions::new(address, subsystem, host))?;
//! controller.request_queues(1)?;
//! let mut queue = controller.open_queue(1, 32, 4096)?;
//! // Submit as much as there are slots for, then one system call sends it all.
//! while let Some(slot) = queue.reserve() {
//!     let read = Command::Read(Blocks::new(0, 8)).to_sqe(1);
//!     queue.submit(slot, read, Transfer::Read(4096))?;
//! }
//! queue.flush()?;
//! while queue.outstanding() > 0 {
//!     queue.receive()?;
//!     while let Some(ended) = queue.next_completion() {
//!         let mut data = [0; 4096];
//!         queue.copy_to(ended.slot, 0, &mut data);
//!         println!("{}: {:?}", ended.cqe.status(), data.first());
//!         queue.release(ended.slot);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod controller;
mod error;
mod identity;
mod options;
mod queue;
mod socket;

pub use controller::Controller;
pub use error::{HostError, ProtocolError, RequestError};
pub use identity::{HOSTID_FILE, HOSTNQN_FILE, HostIdentity};
pub use options::ConnectOptions;
pub use queue::{Completion, DEPTH_MAX, Machine, Queue, Settings, SlotId, Transfer};
pub use socket::SystemCalls;
