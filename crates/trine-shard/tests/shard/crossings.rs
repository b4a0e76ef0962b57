//! The way through a parallel region compiles, and equals the serial one; `tests/compile` holds the
//! ways that do not compile.

use crate::support::{COMPARED, Part, Rank, compare, param};
use trine_comm::Name;
use trine_nn::{Context, NnError};
use trine_shard::{ColumnLinear, RowLinear, Section, Split, Stream};

const HIDDEN: usize = 16;
const INNER: usize = 32;

fn region(rank: &mut Rank, ctx: &Context<'_>) -> Result<(Part, Part), NnError> {
    let (group, numerics) = (rank.group.clone(), ctx.numerics);
    let inner = rank.local("up").shape()[0];
    let params = (rank.find(&["up"]), None);
    let sections = [Section::own(inner)];
    let name = Name::new("up");
    let up = ColumnLinear::new(group.clone(), params, HIDDEN, &sections, numerics, name);
    let params = (rank.find(&["down"]), Some(rank.find(&["bias"])));
    let down = RowLinear::new(group, params, inner, HIDDEN, numerics, Name::new("down"));

    let x: Stream = rank.stream("x", HIDDEN);
    let (h, of_up): (Split, _) = up.forward(&rank.weights, &x, ctx)?;
    let (y, of_down): (Stream, _) = down.forward(&rank.weights, h, ctx)?;
    let y = rank.of_stream(&y, HIDDEN);
    let dy: Stream = rank.stream("dy", HIDDEN);
    let (dh, mut work): (Split, _) =
        down.backward_input(&rank.weights, of_down, &dy, ctx, &mut rank.grads)?;
    let (dx, left): (Stream, _) =
        up.backward_input(&rank.weights, of_up, dh, ctx, &mut rank.grads)?;
    work.append(left);
    rank.run(work, ctx)?;
    Ok((y, rank.of_stream(&dx, HIDDEN)))
}

#[test]
fn a_region_of_two_layers_equals_its_serial_self() {
    let params = [
        param("up", [INNER, HIDDEN], Some((0, INNER))),
        param("down", [HIDDEN, INNER], Some((1, INNER))),
        param("bias", [HIDDEN], None),
    ];
    assert_eq!(compare("region", &params, &region), COMPARED);
}
