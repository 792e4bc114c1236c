//! Numbers that are refused before anything is allocated for them.

/// Longest safetensors header, in bytes (the reference crate's own cap, `safetensors` 0.8 `MAX_HEADER_SIZE`).
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most dimensions of one tensor. torch stops at 64; real weights have at most 5.
pub const MAX_DIMENSIONS: usize = 8;

/// Longest JSON side file that is read (configs, shard indexes), in bytes. The index of a 100 000-tensor
/// checkpoint is about 10 MB.
pub const MAX_JSON_BYTES: u64 = 100_000_000;

/// Most worker threads.
pub const MAX_THREADS: usize = 256;

/// Most slices a plan can be cut into by `--part`.
pub const MAX_PARTS: u32 = 10_000;
