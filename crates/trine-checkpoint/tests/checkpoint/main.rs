//! Checkpoints end to end: any layout to any other, damage, crashes, Hugging Face.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop a test, too")]

mod crash;
mod damage;
mod hostile;
mod hugging_face;
mod layouts;
mod own;
mod ruined;
mod world;
