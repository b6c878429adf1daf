//! PDUs as a host sends them: with the digests that its connection has agreed on, and around anything at all.

use nvme::Sqe;
use nvme::tcp::{CapsuleCmd, Flags, H2cData, Rules, crc32c};
use zerocopy::IntoBytes;

/// Header and data, each with its digest if there is to be one.
fn assemble(rules: &Rules, header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut pdu = header.to_vec();
    if rules.header_digest {
        pdu.extend_from_slice(&crc32c(header).to_le_bytes());
    }
    pdu.extend_from_slice(data);
    if rules.data_digest && !data.is_empty() {
        pdu.extend_from_slice(&crc32c(data).to_le_bytes());
    }
    pdu
}

fn flags(rules: &Rules, data: &[u8]) -> Flags {
    let mut flags = Flags::empty();
    flags.set(Flags::HEADER_DIGEST, rules.header_digest);
    flags.set(Flags::DATA_DIGEST, rules.data_digest && !data.is_empty());
    flags
}

fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

/// A command capsule with data in it.
pub fn capsule(rules: &Rules, sqe: Sqe, data: &[u8]) -> Vec<u8> {
    let pdu = CapsuleCmd::new(sqe, flags(rules, data), 0, length(data));
    assemble(rules, pdu.as_bytes(), data)
}

/// An H2CData.
pub fn h2c_data(
    rules: &Rules,
    cid: u16,
    ttag: u16,
    offset: u32,
    data: &[u8],
    last: bool,
) -> Vec<u8> {
    let mut flags = flags(rules, data);
    flags.set(Flags::LAST, last);
    let pdu = H2cData::new(cid, ttag, offset, length(data), flags, 0);
    assemble(rules, pdu.as_bytes(), data)
}
