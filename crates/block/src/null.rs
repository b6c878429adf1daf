//! A device without a medium: everything succeeds at once. For measuring all that lies above.
//!
//! A read leaves the buffer as it is, which is what makes it free. **So a host that reads from a
//! null device sees what the buffer's last user left there, another host's data perhaps.** It is a
//! measuring instrument, for hosts that trust each other.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::geometry::SharedGeometry;
use crate::{
    BlockDevice, BlockError, BlockQueue, Completion, Deallocation, Geometry, Operation, Properties,
    Token,
};

/// A device of any size that holds nothing.
#[derive(Debug)]
pub struct NullDevice {
    name: String,
    geometry: Arc<SharedGeometry>,
    properties: Properties,
}

impl NullDevice {
    /// A null device of `size` bytes, rounded down to whole blocks.
    ///
    /// # Errors
    /// [`BlockError::Unsuitable`] for a block size other than 512 and 4096, or no block at all.
    pub fn new(name: &str, size: u64, block_size: u32) -> Result<NullDevice, BlockError> {
        Geometry::of_new_device(name, size, block_size)?;
        let geometry = Arc::new(SharedGeometry::new(block_size, size));
        let properties = Properties {
            read_only: false,
            volatile_write_cache: false,
            deallocation: Some(Deallocation { reads_zero: false, granularity: 1 }),
            memory_alignment: 1,
            optimal_blocks: 1,
            description: "null: nothing is kept, everything succeeds".to_owned(),
        };
        Ok(NullDevice { name: name.to_owned(), geometry, properties })
    }

    /// A queue; it needs nothing of the reactor.
    pub fn queue(&self) -> Box<dyn BlockQueue> {
        let (geometry, properties) = (Arc::clone(&self.geometry), self.properties.clone());
        Box::new(NullQueue { geometry, properties, done: VecDeque::new() })
    }

    /// It has so many bytes from now on, rounded down to whole blocks.
    pub fn resize(&self, size: u64) {
        self.geometry.update(size);
    }
}

impl BlockDevice for NullDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry.geometry()
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn open_queue(&self, _local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        Ok(self.queue())
    }
}

#[derive(Debug)]
struct NullQueue {
    geometry: Arc<SharedGeometry>,
    properties: Properties,
    done: VecDeque<Completion>,
}

impl BlockQueue for NullQueue {
    fn submit(&mut self, operation: Operation) {
        let result = operation.admit(self.geometry.geometry(), &self.properties);
        self.done.push_back(Completion::new(operation.token, result));
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        let count = max.min(self.done.len());
        self.done.drain(..count).for_each(done);
        count
    }

    fn cancel(&mut self, _token: Token) -> bool {
        false
    }

    fn outstanding(&self) -> usize {
        self.done.len()
    }

    fn needs_poll(&self) -> bool {
        !self.done.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Data, ErrorKind, Kind};

    #[test]
    fn everything_in_range_completes_once_and_in_order() {
        let device = NullDevice::new("null0", 1 << 20, 4096).unwrap();
        assert_eq!(device.geometry().blocks, 256);
        let mut queue = device.queue();
        for (token, lba) in [(7, 0), (8, 256), (9, 255)] {
            let (kind, data) = (Kind::Verify, Data::none());
            queue.submit(Operation { token: Token(token), kind, lba, blocks: 1, data, fua: false });
        }
        assert_eq!(queue.outstanding(), 3);
        let mut seen = Vec::new();
        assert_eq!(queue.poll(2, &mut |completion| seen.push(completion)), 2);
        assert!(queue.needs_poll());
        assert_eq!(queue.poll(2, &mut |completion| seen.push(completion)), 1);
        assert_eq!(queue.poll(2, &mut |completion| seen.push(completion)), 0);
        let expected = [(7, Ok(())), (8, Err(ErrorKind::OutOfRange)), (9, Ok(()))]
            .map(|(token, result)| Completion::new(Token(token), result));
        assert_eq!(seen, expected);
    }

    #[test]
    fn its_queues_see_another_size_at_once() {
        let device = NullDevice::new("null0", 4096, 4096).unwrap();
        let mut queue = device.queue();
        let mut verify = |lba| {
            let (token, kind, data) = (Token(lba), Kind::Verify, Data::none());
            queue.submit(Operation { token, kind, lba, blocks: 1, data, fua: false });
            let mut seen = Err(ErrorKind::Internal);
            queue.poll(1, &mut |completion| seen = completion.result);
            seen
        };
        assert_eq!(verify(1), Err(ErrorKind::OutOfRange));
        device.resize(2 * 4096);
        assert_eq!((verify(1), device.geometry().generation), (Ok(()), 1));
    }

    #[test]
    fn odd_shapes_are_refused_by_name() {
        let error = NullDevice::new("null0", 1 << 20, 1024).unwrap_err().to_string();
        assert!(error.contains("null0") && error.contains("1024"), "{error}");
        let error = NullDevice::new("null0", 4095, 4096).unwrap_err().to_string();
        assert!(error.contains("4095"), "{error}");
    }
}
