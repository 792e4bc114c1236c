//! What a caller may be told while a plan runs.

/// Hears of bytes as they are done. Called from many threads.
pub trait Progress: Sync {
    /// The work falls into so many parts, called `what`; each tells of its bytes once. Comes before [`begin`](Self::begin).
    fn parts(&self, _what: &'static str, _count: usize) {}
    /// So many bytes will be written.
    fn begin(&self, bytes: u64);
    /// So many more bytes are done.
    fn advance(&self, bytes: u64);
    /// The last byte is done, or the run failed.
    fn finish(&self);
}

/// Says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
}
