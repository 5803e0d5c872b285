//! What a pool has done, in numbers.

/// Counters of one pool. `free + used + retired == frames` at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// How many frames there are.
    pub frames: u32,
    /// Frames that can be handed out.
    pub free: u32,
    /// Frames with a refcount above 0.
    pub used: u32,
    /// Frames out of service: retired and not in use any more.
    pub retired: u32,
    /// Frames handed out since the pool was made.
    pub allocations: u64,
    /// Last puts since the pool was made.
    pub frees: u64,
    /// Requests that got no frame at all.
    pub refused: u64,
}
