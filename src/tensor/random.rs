//! Random bits that depend on where an element is and on nothing else, so that any tiling on any number of threads
//! rounds it the same way.
//!
//! The n-th number is the n-th output of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
//! generators"), which can be had without the ones before it: its state only counts.

/// 2⁶⁴ / φ, the step of SplitMix64.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// 32 uniform bits for element `index` of the tensor with that seed.
#[inline(always)]
pub fn bits(seed: u64, index: u64) -> u32 {
    let state = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    // The upper half: it depends on all of `mixed`, and the final xor-shift leaves it nearly as it is.
    let [_, _, _, _, upper @ ..] = (mixed ^ (mixed >> 31)).to_le_bytes();
    u32::from_le_bytes(upper)
}

/// A seed that depends on all of `parts`, one after the other.
pub fn seed_of(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a digest has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_splitmix64() {
        // First three outputs for seed 1234567, as listed at https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64.
        let published: [u64; 3] = [6457827717110365317, 3203168211198807973, 9817491932198370423];
        for (index, number) in (0..).zip(published) {
            assert_eq!(u64::from(bits(1_234_567, index)), number >> 32);
        }
    }
}
