//! The two traits, and what a device says of itself.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use memory::SharedMemory;
use uuid::Uuid;

use crate::{BlockError, Completion, Operation, Token};

/// The size of a device. Read often, changes seldom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes in a logical block: 512 or 4096.
    pub block_size: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Differs from every earlier one when the size has changed.
    pub generation: u64,
}

impl Geometry {
    /// The geometry of a new device of `size` bytes, rounded down to whole blocks.
    ///
    /// # Errors
    /// [`BlockError::Unsuitable`] for a block size other than 512 and 4096, or no block at all.
    pub fn of_new_device(name: &str, size: u64, block_size: u32) -> Result<Geometry, BlockError> {
        let refuse = |problem| Err(BlockError::Unsuitable { device: name.to_owned(), problem });
        if !matches!(block_size, 512 | 4096) {
            return refuse(format!("block size {block_size} is not supported: use 512 or 4096"));
        }
        let blocks = size / u64::from(block_size);
        if blocks == 0 {
            return refuse(format!("{size} bytes hold no block of {block_size}: make it larger"));
        }
        Ok(Geometry { block_size, blocks, generation: 0 })
    }

    /// log2 of the block size.
    pub fn block_shift(&self) -> u32 {
        self.block_size.trailing_zeros()
    }

    /// Size in bytes; saturates.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_size))
    }

    /// Whether `blocks` blocks from `lba` lie inside the device.
    pub fn contains(&self, lba: u64, blocks: u64) -> bool {
        lba.checked_add(blocks).is_some_and(|end| end <= self.blocks)
    }
}

/// How a device deallocates blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deallocation {
    /// Deallocated blocks read as zeroes afterwards; otherwise as anything.
    pub reads_zero: bool,
    /// Preferred granularity and alignment in logical blocks, at least 1.
    pub granularity: u32,
}

/// What a device can do and promises; fixed while it is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Writes of any kind are refused.
    pub read_only: bool,
    /// Written data may be lost at power loss until a flush, or unless written with FUA.
    pub volatile_write_cache: bool,
    /// Whether and how blocks can be deallocated.
    pub deallocation: Option<Deallocation>,
    /// Bytes to which segments' addresses and lengths must be aligned, a power of two.
    pub memory_alignment: u32,
    /// Preferred size and alignment of an I/O in logical blocks, at least 1.
    pub optimal_blocks: u32,
    /// One line for a person: the kind of device and the way it is reached.
    pub description: String,
}

/// What the medium itself says it is. Where it says nothing, the target derives a stable identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// UUID of the medium.
    pub uuid: Option<Uuid>,
    /// NGUID of the medium.
    pub nguid: Option<[u8; 16]>,
}

/// Something that holds blocks. Shared by all threads. Who has to know which kind it is (to say how slow it is to be, what
/// is to fail) finds out by [`Any`].
pub trait BlockDevice: Any + Send + Sync + Debug {
    /// The name the configuration gave it.
    fn name(&self) -> &str;

    /// Its present size.
    fn geometry(&self) -> Geometry;

    /// Asks the medium for its size again; another one has a new generation. May block, so not on a reactor.
    ///
    /// # Errors
    /// [`BlockError::System`] if the system does not say.
    fn rescan(&self) -> Result<Geometry, BlockError> {
        Ok(self.geometry())
    }

    /// What it can do and promises.
    fn properties(&self) -> &Properties;

    /// What the medium says it is.
    fn identity(&self) -> Identity {
        Identity::default()
    }

    /// Opens a queue for the reactor that `local` belongs to, on its thread. Must not block.
    ///
    /// # Errors
    /// If the reactor lacks what the queue needs, or the device has failed.
    fn open_queue(&self, local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError>;

    /// The memory that it consists of, if it lends that: reads need then bring none ([`Data::lent`](crate::Data::lent)).
    /// Layers lend nothing: one holds completions back, for which writes would wait, the other makes data wrong.
    fn medium(&self) -> Option<&Arc<SharedMemory>> {
        None
    }

    /// It has left the configuration. Queues that hold operations back for a reason of their own end them now; whatever
    /// is in a medium comes back as ever.
    fn retire(&self) {}
}

/// One reactor's way to a device. Not `Send`.
pub trait BlockQueue: Debug {
    /// Takes an operation. Never fails and never blocks: what cannot be passed on yet is held, and
    /// whatever goes wrong is said by its completion.
    fn submit(&mut self, operation: Operation);

    /// Passes on what was held and reports at most `max` completions; their number.
    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize;

    /// Asks to give up the operation with this token. True: it will complete with
    /// [`ErrorKind::Aborted`](crate::ErrorKind::Aborted) and has not changed the medium. False: it
    /// is not here, or its outcome stands.
    fn cancel(&mut self, token: Token) -> bool;

    /// Operations taken and not yet completed.
    fn outstanding(&self) -> usize;

    /// Whether the next poll has something to do that nothing will announce, so that the reactor
    /// must not sleep before it.
    fn needs_poll(&self) -> bool;

    /// When it wants to be polled at the latest, by [`reactor::Local::now`].
    fn next_deadline(&self) -> Option<reactor::Instant> {
        None
    }
}
