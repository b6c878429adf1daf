//! How a controller puts its PDUs on the wire.

use nvme::tcp::{Flags, crc32c};

/// The digests that a connection has agreed on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wire {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
}

impl Wire {
    pub(crate) fn flags(self, data: bool) -> Flags {
        let mut flags = Flags::empty();
        flags.set(Flags::HEADER_DIGEST, self.header_digest);
        flags.set(Flags::DATA_DIGEST, data && self.data_digest);
        flags
    }

    pub(crate) fn pdu(self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        if self.header_digest {
            bytes.extend(crc32c(header).to_le_bytes());
        }
        bytes.extend(data);
        if self.data_digest && !data.is_empty() {
            bytes.extend(crc32c(data).to_le_bytes());
        }
        bytes
    }
}
