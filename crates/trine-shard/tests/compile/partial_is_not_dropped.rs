//! A sum that nobody reduces is a lost gradient.
#![deny(unused_must_use)]

use trine_shard::Partial;

fn summand() -> Partial {
    loop {}
}

fn lose_it() {
    summand();
}

fn main() {}
