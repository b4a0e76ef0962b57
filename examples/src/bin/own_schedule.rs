//! A pipeline schedule of one's own: written down, proven, simulated and drawn; and a mistake that the proof finds.
#![expect(clippy::print_stdout, reason = "an example shows what it finds")]

use std::error::Error;
use trine::schedule::{Action, Delivery, Schedule, UniformCosts, draw, lower, simulate, verify};

/// Two stages on two ranks, three micro-batches. F, B and W are forward, input gradient and weight
/// gradient; `F0.2` is that of stage 0 on micro-batch 2.
const EAGER: [&str; 2] = [
    "F0.0 F0.1 B0.0 W0.0 F0.2 B0.1 W0.1 B0.2 W0.2",
    "F1.0 B1.0 W1.0 F1.1 B1.1 W1.1 F1.2 B1.2 W1.2",
];

/// The same, but rank 1 wants micro-batch 2 before it hands back any gradient.
const STUCK: [&str; 2] = [EAGER[0], "F1.0 F1.1 F1.2 B1.0 W1.0 B1.1 W1.1 B1.2 W1.2"];

/// The schedule with messages between the stages.
fn schedule(lists: [&str; 2]) -> Result<Schedule, Box<dyn Error>> {
    let mut actions = Vec::new();
    for list in lists {
        actions.push(list.split(' ').map(str::parse).collect::<Result<Vec<Action>, _>>()?);
    }
    Ok(lower(&Schedule::compute("mine", actions)?, None)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mine = schedule(EAGER)?;
    let report = verify(&mine)?;
    println!("proven: at most {:?} micro-batches in flight", report.in_flight_peak);

    let timeline = simulate(&mine, Delivery::Buffered, &UniformCosts::new(&mine))?;
    println!("{:.0} % of the time is idle", 100.0 * timeline.bubble_fraction());
    println!("{}", draw::ascii(&timeline, 100));

    match schedule(STUCK).and_then(|stuck| Ok(verify(&stuck)?)) {
        Ok(_) => Err("a deadlock was not found".into()),
        Err(error) => {
            println!("the other one is refused: {error}");
            Ok(())
        }
    }
}
