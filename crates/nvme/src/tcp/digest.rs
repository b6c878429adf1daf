//! CRC32C, the digest of NVMe/TCP headers and data.
//!
//! The Castagnoli polynomial, reflected, initial value and final inversion all ones: the CRC of
//! iSCSI (RFC 3720). It lies on the wire least significant byte first.

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes of a digest.
pub const DIGEST_LENGTH: u32 = 4;

/// CRC32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    low_half(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, data))
}

/// CRC32C of data that arrives in pieces. Only the running value is kept, so that a connection can
/// hold one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// Before the first byte.
    pub const fn new() -> Self {
        Self(u32::MAX)
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(self.0));
        digest.update(data);
        self.0 = low_half(digest.get_state());
    }

    /// CRC32C of everything taken in.
    pub const fn finish(self) -> u32 {
        !self.0
    }
}

/// The library returns every width of CRC as a `u64`.
const fn low_half(crc: u64) -> u32 {
    let [a, b, c, d, ..] = crc.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
