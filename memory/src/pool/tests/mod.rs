mod books;
mod model;
mod placement;
mod scale;

use super::*;

fn pool(frames: u32) -> Pool {
    Pool::new(PoolId(1), frames, Kind::Public)
}
