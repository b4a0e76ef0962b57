//! With sequence parallelism a gathered activation is not the rank's own rows.

use trine_shard::{Stream, Whole};

fn enter_twice(gathered: Whole) -> Stream {
    gathered
}

fn main() {}
