//! Numbers that are refused before anything is allocated for them.

/// Longest safetensors header, in bytes (the reference crate's own cap, `safetensors` 0.8 `MAX_HEADER_SIZE`).
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most dimensions of one tensor. torch stops at 64; real weights have at most 5.
pub const MAX_DIMENSIONS: usize = 8;

/// Longest JSON side file that is read (configs, shard indexes), in bytes. The index of a 100 000-tensor
/// checkpoint is about 10 MB.
pub const MAX_JSON_BYTES: u64 = 100_000_000;

/// Longest pickle of a weight file, in bytes; about 200 bytes belong to each tensor.
pub const MAX_PICKLE_BYTES: u64 = 100_000_000;

/// Most tuples, lists, dicts and calls in a pickle; a tensor takes eight or so.
pub const MAX_PICKLE_VALUES: u64 = 4_000_000;

/// Most values that a pickle names, in collections or not; a tensor takes 25 or so.
pub const MAX_PICKLE_PUSHES: u64 = 12_000_000;

/// Deepest nesting in a pickle; training checkpoints stay below ten.
pub const MAX_PICKLE_DEPTH: u32 = 100;

/// How often the bytes of a file may be used by its tensors: weights that are shared by all layers of a model are
/// named once per layer.
pub const MAX_SHARING: u64 = 256;

/// What may be decompressed or put in order in memory for one file, in bytes, beside its own length.
pub const MAX_HELD_BYTES: u64 = 64 << 20;

/// The same for all files of a checkpoint or pipeline together, in bytes, beside their own lengths.
pub const MAX_HELD_BYTES_TOGETHER: u64 = 256 << 20;

/// Most worker threads.
pub const MAX_THREADS: usize = 256;

/// Most slices a plan can be cut into by `--part`.
pub const MAX_PARTS: u32 = 10_000;

/// Largest rank that may be asked for: `resize` fills up with zeros to any rank, and no layer has more useful ones.
pub const MAX_RANK: usize = 65_536;

/// Most values in one JSON side file: objects, lists and what they hold. The longest that are needed are vocabularies, of
/// about 300 000 texts, and indexes, of a text per tensor; a value takes up to 300 bytes.
pub const MAX_JSON_VALUES: u64 = 1_000_000;

/// Most tensors of one file. A layer of the largest models has about 1 500, and all experts of one about 90 000 with their factors.
pub const MAX_TENSORS: usize = 200_000;

/// Most patterns of one setting of an adapter's config that are more than the path of a module or its end.
pub const MAX_PATTERNS: u64 = 1_000;

/// What all of those may take once they are compiled, in bytes.
pub const MAX_PATTERNS_BYTES: usize = 64 << 20;

/// Most experts of one layer; the largest models have 512.
pub const MAX_EXPERTS: u64 = 4_096;
