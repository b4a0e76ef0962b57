//! One rank's features are not all features.

use trine_shard::{Split, Whole};

fn pretend(features: Split) -> Whole {
    features
}

fn main() {}
