//! Codes of one to eight bits, as bytes hold them.
//!
//! | order | together | where code j lies | who |
//! |---|---|---|---|
//! | `Stream` | 8 codes in b bytes | bits j·b … of a little-endian stream | compressed-tensors from 0.18, MLX, GPTQ of 2, 3, 4, 8 bits, AutoRound, MXFP4 and 6 |
//! | `Words` | ⌊32 ∕ b⌋ codes in 4 bytes | from the low end of a word, whose upper bits stay empty | compressed-tensors before 0.18 |
//! | `Planes` | 32 codes in 4·b bytes | planes of 4, 2 and 1 bits, the one of the lowest bits first | GPTQModel's 5, 6 and 7 bits and `gptq_p` |
//! | `HighFirst` | 2 codes in a byte | the even one in the high half | bitsandbytes, ComfyUI's `nvfp4` |
//! | `Interleaved` | 8 codes in 4 bytes | half j of a word is code 0, 2, 4, 6, 1, 3, 5, 7 | AWQ `gemm` |

use crate::tensor::simd::{Level, per_cpu};

/// How codes follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BitOrder {
    /// One little-endian stream of bits.
    Stream,
    /// Words of 32 bits that hold whole codes, and padding.
    Words,
    /// Planes of four, two and one bits.
    Planes,
    /// Two codes in a byte, the high half first.
    HighFirst,
    /// Words of eight codes in AWQ's order.
    Interleaved,
}

/// Codes of some width in some order.
///
/// Rows are cut at whole units only: a unit is what begins and ends with a byte in the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Bits {
    order: BitOrder,
    width: u32,
}

/// Most codes, and bytes, of a unit.
const MOST: usize = 32;

/// Which code stands in each half byte of a word of AWQ, from its low end (AutoAWQ `packing_utils.py`).
const INTERLEAVED: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Bits {
    /// Codes of `width` bits in that order; `None` where there is no such thing.
    pub fn new(order: BitOrder, width: u32) -> Option<Self> {
        let is_known = match order {
            BitOrder::Stream | BitOrder::Words | BitOrder::Planes => (1..=8).contains(&width),
            BitOrder::HighFirst | BitOrder::Interleaved => width == 4,
        };
        is_known.then_some(Self { order, width })
    }

    /// Bits of a code.
    pub fn width(self) -> u32 {
        self.width
    }

    /// The order.
    pub fn order(self) -> BitOrder {
        self.order
    }

    /// The largest code.
    pub fn most(self) -> u8 {
        u8::MAX >> (8 - self.width)
    }

    /// Codes and bytes of a unit.
    pub fn unit(self) -> (usize, usize) {
        let width = self.bits();
        match self.order {
            BitOrder::Stream => (8, width),
            BitOrder::Words => (32 / width, 4),
            BitOrder::Planes => (32, 4 * width),
            BitOrder::HighFirst => (2, 1),
            BitOrder::Interleaved => (8, 4),
        }
    }

    /// Bytes that `codes` codes need.
    pub fn bytes_of(self, codes: usize) -> usize {
        let (unit, bytes) = self.unit();
        match self.order {
            BitOrder::Stream => codes / unit * bytes + (codes % unit * self.bits()).div_ceil(8),
            _ => codes.div_ceil(unit) * bytes,
        }
    }

    /// Reads codes that begin with a unit.
    ///
    /// # Panics
    /// When `bytes` are too few.
    pub fn unpack(self, bytes: &[u8], out: &mut [u8]) {
        let (codes, size) = self.unit();
        let whole = out.len() / codes;
        let (units, rest) = bytes.split_at(whole * size);
        let (out, last) = out.split_at_mut(whole * codes);
        let level = Level::best();
        unpack_at(level, self, units, out);
        if !last.is_empty() {
            let (mut unit, mut held) = ([0; MOST], [0; MOST]);
            let needed = self.bytes_of(last.len());
            unit[..needed].copy_from_slice(&rest[..needed]);
            unpack_at(level, self, &unit[..size], &mut held[..codes]);
            last.copy_from_slice(&held[..last.len()]);
        }
    }

    /// Writes codes that begin with a unit; what a last unit holds beyond them becomes zero, and as many bytes are written
    /// as the codes [need](Self::bytes_of).
    ///
    /// # Panics
    /// When `bytes` are too few.
    pub fn pack(self, codes: &[u8], bytes: &mut [u8]) {
        let (count, size) = self.unit();
        for (unit, codes) in bytes.chunks_mut(size).zip(codes.chunks(count)) {
            let (mut held, mut packed) = ([0; MOST], [0; MOST]);
            held[..codes.len()].copy_from_slice(codes);
            self.pack_unit(&held[..count], &mut packed[..size]);
            let needed = self.bytes_of(codes.len());
            unit[..needed].copy_from_slice(&packed[..needed]);
        }
    }

    fn pack_unit(self, codes: &[u8], bytes: &mut [u8]) {
        match self.order {
            BitOrder::Stream | BitOrder::Words => put(codes, self.bits(), bytes),
            BitOrder::HighFirst => bytes[0] = codes[0] << 4 | codes[1] & 15,
            BitOrder::Interleaved => put(&INTERLEAVED.map(|at| codes[at]), 4, bytes),
            BitOrder::Planes => {
                let mut from = 0;
                for (shift, width) in planes(self.bits()) {
                    let mut plane = [0; MOST];
                    plane
                        .iter_mut()
                        .zip(codes)
                        .for_each(|(part, code)| *part = code >> shift & (u8::MAX >> (8 - width)));
                    put(&plane, width, &mut bytes[from..from + 4 * width]);
                    from += 4 * width;
                }
            }
        }
    }

    fn bits(self) -> usize {
        usize::try_from(self.width).expect("a width is at most 8")
    }
}

/// Sets the bits of a stream, all of which are zero.
fn put(codes: &[u8], width: usize, bytes: &mut [u8]) {
    for (at, code) in codes.iter().enumerate() {
        let bit = at * width;
        let shifted = u16::from(*code & (u8::MAX >> (8 - width))) << (bit % 8);
        let [low, high] = shifted.to_le_bytes();
        bytes[bit / 8] |= low;
        if high != 0 {
            bytes[bit / 8 + 1] |= high;
        }
    }
}

/// (bits below it, its bits) of the planes of a width.
fn planes(width: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut below = 0;
    [8, 4, 2, 1].into_iter().filter(move |plane| width & plane != 0).map(move |plane| {
        below += plane;
        (below - plane, plane)
    })
}

per_cpu! {
    fn unpack_at(bits: Bits, bytes: &[u8], out: &mut [u8]) = unpack_units;
}

/// Whole units.
#[inline(always)]
fn unpack_units(bits: Bits, bytes: &[u8], out: &mut [u8]) {
    match bits.order {
        BitOrder::Stream => stream(bits.bits(), bytes, out),
        BitOrder::Words => words(bits.bits(), bytes, out),
        BitOrder::Planes => unpack_planes(bits.bits(), bytes, out),
        BitOrder::HighFirst => {
            for (out, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *out = [byte >> 4, byte & 15];
            }
        }
        BitOrder::Interleaved => {
            for (out, &[a, b, c, d]) in out.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = [a & 15, c & 15, a >> 4, c >> 4, b & 15, d & 15, b >> 4, d >> 4];
            }
        }
    }
}

#[inline(always)]
fn stream(width: usize, bytes: &[u8], out: &mut [u8]) {
    match width {
        1 => stream_of::<1>(bytes, out),
        2 => stream_of::<2>(bytes, out),
        3 => stream_of::<3>(bytes, out),
        4 => {
            for (out, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *out = [byte & 15, byte >> 4];
            }
        }
        5 => stream_of::<5>(bytes, out),
        6 => stream_of::<6>(bytes, out),
        7 => stream_of::<7>(bytes, out),
        _ => out.copy_from_slice(bytes),
    }
}

#[inline(always)]
fn stream_of<const WIDTH: usize>(bytes: &[u8], out: &mut [u8]) {
    for (out, bytes) in out.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<WIDTH>().0) {
        let mut word = [0; 8];
        word[..WIDTH].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        for (at, code) in out.iter_mut().enumerate() {
            let [low, ..] = (word >> (at * WIDTH)).to_le_bytes();
            *code = low & (u8::MAX >> (8 - WIDTH));
        }
    }
}

#[inline(always)]
fn words(width: usize, bytes: &[u8], out: &mut [u8]) {
    match width {
        3 => words_of::<3, 10>(bytes, out),
        5 => words_of::<5, 6>(bytes, out),
        6 => words_of::<6, 5>(bytes, out),
        7 => words_of::<7, 4>(bytes, out),
        // Widths that fill a word are the same as a stream.
        _ => stream(width, bytes, out),
    }
}

#[inline(always)]
fn words_of<const WIDTH: usize, const CODES: usize>(bytes: &[u8], out: &mut [u8]) {
    for (out, bytes) in out.as_chunks_mut::<CODES>().0.iter_mut().zip(bytes.as_chunks::<4>().0) {
        let word = u32::from_le_bytes(*bytes);
        for (at, code) in out.iter_mut().enumerate() {
            let [low, ..] = (word >> (at * WIDTH)).to_le_bytes();
            *code = low & (u8::MAX >> (8 - WIDTH));
        }
    }
}

#[inline(always)]
fn unpack_planes(width: usize, bytes: &[u8], out: &mut [u8]) {
    for (out, unit) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.chunks_exact(4 * width)) {
        *out = [0; 32];
        let mut rest = unit;
        for (shift, plane) in planes(width) {
            let mut part = [0; 32];
            let (own, after) = rest.split_at(4 * plane);
            stream(plane, own, &mut part);
            out.iter_mut().zip(part).for_each(|(code, part)| *code |= part << shift);
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: [BitOrder; 5] =
        [BitOrder::Stream, BitOrder::Words, BitOrder::Planes, BitOrder::HighFirst, BitOrder::Interleaved];

    fn all() -> impl Iterator<Item = Bits> {
        ORDERS.into_iter().flat_map(|order| (1..=8).filter_map(move |width| Bits::new(order, width)))
    }

    fn unpacked(order: BitOrder, width: u32, bytes: &[u8], count: usize) -> Vec<u8> {
        let mut out = vec![0xAA; count];
        Bits::new(order, width).unwrap().unpack(bytes, &mut out);
        out
    }

    #[test]
    fn a_stream_crosses_bytes_and_words() {
        // 0b101_100_011_010_001_000 from the low end: codes 0, 1, 2, 3, 4, 5 of three bits.
        assert_eq!(unpacked(BitOrder::Stream, 3, &[0b1000_1000, 0b1100_0110, 0b10], 6), [0, 1, 2, 3, 4, 5]);
        assert_eq!(unpacked(BitOrder::Stream, 4, &[0x21, 0x43], 4), [1, 2, 3, 4]);
        assert_eq!(unpacked(BitOrder::Stream, 2, &[0b11_10_01_00], 4), [0, 1, 2, 3]);
        // Code 10 of three bits: two bits at the end of the first word, one at the start of the second.
        let bytes = [0, 0, 0, 0b1000_0000, 1];
        assert_eq!(unpacked(BitOrder::Stream, 3, &bytes, 11)[10], 0b110);
    }

    #[test]
    fn padded_words_hold_whole_codes() {
        let word = (0..10).fold(0_u32, |word, at| word | (at % 8) << (3 * at));
        let bytes = [word.to_le_bytes(), 5_u32.to_le_bytes()].concat();
        assert_eq!(unpacked(BitOrder::Words, 3, &bytes, 11), [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 5]);
        assert_eq!(Bits::new(BitOrder::Words, 6).unwrap().bytes_of(11), 12);
    }

    #[test]
    fn planes_put_the_low_bits_first() {
        // Five bits: a plane of four in 16 bytes, then one of one in four bytes.
        let mut bytes = [0; 20];
        bytes[0] = 0x21;
        bytes[16] = 0b10;
        assert_eq!(unpacked(BitOrder::Planes, 5, &bytes, 3), [1, 18, 0]);
        let seven: Vec<_> = planes(7).collect();
        assert_eq!(seven, [(0, 4), (4, 2), (6, 1)]);
    }

    #[test]
    fn halves_stand_in_the_order_of_their_maker() {
        assert_eq!(unpacked(BitOrder::HighFirst, 4, &[0x12, 0x30], 3), [1, 2, 3]);
        let word = 0x7531_6420_u32.to_le_bytes();
        assert_eq!(unpacked(BitOrder::Interleaved, 4, &word, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn what_is_packed_comes_back_at_any_length() {
        for bits in all() {
            for count in [1, 7, 8, 31, 32, 33, 100] {
                let codes: Vec<u8> = (0..count).map(|at| (at * 37 + at / 3) as u8 & bits.most()).collect();
                let mut bytes = vec![0; bits.bytes_of(count)];
                bits.pack(&codes, &mut bytes);
                let mut back = vec![0; count];
                bits.unpack(&bytes, &mut back);
                assert_eq!(back, codes, "{bits:?}, {count} codes");
            }
        }
    }

    #[test]
    fn every_instruction_set_unpacks_the_same() {
        let bytes: Vec<u8> = (0..4 * 7 * 5 * 8).map(|at| (at * 73 + 5) as u8).collect();
        for bits in all() {
            let (codes, size) = bits.unit();
            let units = bytes.len() / size;
            let results = Level::all().into_iter().map(|level| {
                let mut out = vec![0; units * codes];
                unpack_at(level, bits, &bytes[..units * size], &mut out);
                out
            });
            let results: Vec<_> = results.collect();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{bits:?}");
            assert!(results[0].iter().all(|code| *code <= bits.most()));
        }
    }

    #[test]
    fn there_are_no_other_widths() {
        assert_eq!(all().count(), 26);
        assert_eq!(Bits::new(BitOrder::Stream, 0), None);
        assert_eq!(Bits::new(BitOrder::Stream, 9), None);
        assert_eq!(Bits::new(BitOrder::HighFirst, 3), None);
    }
}
