//! A sum that has not been reduced must not leave the region.

use trine_shard::{Partial, Stream};

fn forget_the_reduction(sum: Partial) -> Stream {
    sum
}

fn main() {}
