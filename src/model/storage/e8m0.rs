//! The values of E8M0, the scales of microscaling formats (OCP MX 1.0): byte b is 2^(b − 127), and 255 is no number.

/// What a byte is.
pub fn value(byte: u8) -> f32 {
    match byte {
        // Below the normal numbers of f32.
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}
