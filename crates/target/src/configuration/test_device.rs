//! A device that is only described, for tests of what is said about devices: every property can be set.

use std::sync::Arc;

use block::{BlockDevice, BlockError, BlockQueue, Deallocation, Geometry, Identity, Properties};

/// The description of a device.
#[derive(Clone, Debug)]
pub(crate) struct TestDevice {
    pub(crate) name: String,
    pub(crate) geometry: Geometry,
    pub(crate) properties: Properties,
    pub(crate) identity: Identity,
}

impl TestDevice {
    /// A writable disk of 1 GiB in blocks of 4,096 bytes, with a cache, that reads deallocated blocks as zeroes.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            geometry: Geometry { block_size: 4096, blocks: 1 << 18, generation: 0 },
            properties: Properties {
                read_only: false,
                volatile_write_cache: true,
                deallocation: Some(Deallocation { reads_zero: true, granularity: 16 }),
                memory_alignment: 1,
                optimal_blocks: 2,
                description: "test".to_owned(),
            },
            identity: Identity::default(),
        }
    }

    pub(crate) fn shared(self) -> Arc<dyn BlockDevice> {
        Arc::new(self)
    }
}

impl BlockDevice for TestDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn identity(&self) -> Identity {
        self.identity
    }

    fn open_queue(&self, _local: &reactor::Local) -> Result<Box<dyn BlockQueue>, BlockError> {
        let problem = "it is only described".to_owned();
        Err(BlockError::Unsuitable { device: self.name.clone(), problem })
    }
}
