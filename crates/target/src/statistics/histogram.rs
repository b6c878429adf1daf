//! The buckets of a latency histogram: log-linear, the same for every device and class.
//!
//! Each power of two of nanoseconds is cut into [`PARTS`] equal buckets, so a bucket is at most an eighth of its lower
//! bound wide, and a percentile read from it is right to that. The first begins at 0 and takes all that is below
//! [`FLOOR`]; the last takes all that is longer than the two minutes it reaches to.
//!
//! Finer would be easy, and is not worth its memory: each class of each device on each shard has one histogram.

/// log2 of the number of buckets in a power of two.
const PART_BITS: u32 = 3;

/// Buckets in a power of two.
pub const PARTS: usize = 1 << PART_BITS;

/// log2 of where the finer buckets begin: 1.024 µs.
const FLOOR_BITS: u32 = 10;

/// Latencies below it share a bucket with those right above.
pub const FLOOR: u64 = 1 << FLOOR_BITS;

/// log2 of where the last bucket ends: 137 s.
const CEILING_BITS: u32 = 37;

/// How many buckets there are.
pub const BUCKETS: usize = ((CEILING_BITS - FLOOR_BITS) as usize) << PART_BITS;

/// The bucket of a latency.
pub(crate) fn bucket(nanos: u64) -> usize {
    let nanos = nanos.clamp(FLOOR, (1 << CEILING_BITS) - 1);
    let power = nanos.ilog2();
    let within = (nanos >> (power - PART_BITS)) & (PARTS as u64 - 1);
    let at = (u64::from(power - FLOOR_BITS) << PART_BITS) | within;
    usize::try_from(at).unwrap_or(0)
}

/// Where a bucket begins, in nanoseconds; it ends where the next one begins.
pub const fn start(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let (power, within) = (bucket >> PART_BITS, bucket & (PARTS - 1));
    ((PARTS + within) as u64) << (power + (FLOOR_BITS - PART_BITS) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_join_each_other() {
        for at in 1..=BUCKETS {
            assert!(start(at - 1) < start(at));
            assert_eq!(bucket(start(at) - 1), at - 1);
        }
        assert_eq!((bucket(0), bucket(FLOOR), bucket(u64::MAX)), (0, 0, BUCKETS - 1));
        assert_eq!(start(BUCKETS), 1 << CEILING_BITS);
    }

    proptest! {
        #[test]
        fn a_latency_is_inside_its_bucket(nanos in prop_oneof![0..1_u64 << CEILING_BITS, 0..100_000_u64]) {
            let at = bucket(nanos);
            prop_assert!(start(at) <= nanos && nanos < start(at + 1));
            prop_assert!(at == 0 || start(at + 1) - start(at) <= start(at) / 8);
        }
    }
}
