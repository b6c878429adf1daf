//! What blocks contain: a version, the block's own address, and filling made of both, so that a stale,
//! misplaced or torn block is recognised for what it is. Version 0 is a block of zeroes.

/// The value of one block: 0, or the number of the write that wrote it.
pub type Version = u64;

fn word(version: Version, lba: u64, at: u64) -> u64 {
    match at {
        0 => version,
        1 => lba ^ 0x5449_4445_4741_5445,
        _ => version.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ lba.rotate_left(32) ^ at,
    }
}

/// Writes a block's contents.
pub fn fill(block: &mut [u8], version: Version, lba: u64) {
    if version == 0 {
        block.fill(0);
        return;
    }
    for (at, bytes) in (0..).zip(block.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word(version, lba, at).to_le_bytes());
    }
}

/// The version that a block contains.
///
/// # Errors
/// What is wrong with it, if it is no block that was ever written at this address.
pub fn read(block: &[u8], lba: u64) -> Result<Version, String> {
    let words: Vec<u64> =
        block.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect();
    let version = words[0];
    if version == 0 {
        return if words.iter().all(|word| *word == 0) {
            Ok(0)
        } else {
            Err(format!("block {lba} is zero at its beginning and something else behind"))
        };
    }
    let whose = words[1] ^ 0x5449_4445_4741_5445;
    if whose != lba {
        return Err(format!("block {lba} holds version {version} of block {whose}"));
    }
    match (0..).zip(&words).find(|(at, found)| word(version, lba, *at) != **found) {
        None => Ok(version),
        Some((at, _)) => Err(format!("block {lba}, version {version}, is torn at byte {}", at * 8)),
    }
}

/// The contents of `versions.len()` blocks from `lba` on.
pub fn blocks(versions: &[Version], lba: u64, block_size: usize) -> Vec<u8> {
    let mut bytes = vec![0; versions.len() * block_size];
    for ((lba, version), block) in (lba..).zip(versions).zip(bytes.chunks_exact_mut(block_size)) {
        fill(block, *version, lba);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_says_what_it_is() {
        let mut block = blocks(&[7], 3, 512);
        assert_eq!(read(&block, 3), Ok(7));
        assert!(read(&block, 4).unwrap_err().contains("of block 3"));
        block[300] ^= 1;
        assert!(read(&block, 3).unwrap_err().contains("torn at byte 296"));
        assert_eq!(read(&[0; 512], 3), Ok(0));
        block.fill(0);
        block[8] = 1;
        assert!(read(&block, 3).is_err());
    }
}
