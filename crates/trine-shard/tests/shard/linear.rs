//! Column- and row-parallel linear layers.

use crate::support::{COMPARED, Param, Part, Rank, compare, param};
use trine_comm::Name;
use trine_nn::{Context, NnError};
use trine_shard::{ColumnLinear, RowLinear, Section};

const HIDDEN: usize = 16;

/// Sections of a column-parallel layer: the names of its weights, each with features and units.
type Parts = [(&'static str, usize, usize)];

fn column_params(parts: &Parts, biases: &[&'static str]) -> Vec<Param> {
    let weights = parts
        .iter()
        .map(|(name, features, units)| param(name, [*features, HIDDEN], Some((0, *units))));
    let bias = |(name, (_, features, units)): (&&'static str, &(_, usize, usize))| {
        param(name, [*features], Some((0, *units)))
    };
    weights.chain(biases.iter().zip(parts).map(bias)).collect()
}

fn column(
    rank: &mut Rank,
    ctx: &Context<'_>,
    parts: &Parts,
    biases: &[&str],
) -> Result<(Part, Part), NnError> {
    let names: Vec<&str> = parts.iter().map(|part| part.0).collect();
    let (mut sections, mut cols, mut width) = (vec![], vec![], 0);
    for (name, features, _) in parts {
        let local = rank.local(name);
        let (replicas, replica) = (local.replicas, local.replica);
        sections.push(Section { cols: local.shape()[0], replicas, replica });
        cols.extend(local.ranges[0].clone().map(|row| width + row));
        width += features;
    }
    let weight = rank.find(&names);
    let bias = (!biases.is_empty()).then(|| rank.find(biases));
    let name = Name::new("column");
    let numerics = ctx.numerics;
    let layer =
        ColumnLinear::new(rank.group.clone(), (weight, bias), HIDDEN, &sections, numerics, name);
    let x = rank.stream("x", HIDDEN);
    let (y, saved) = layer.forward(&rank.weights, &x, ctx)?;
    assert_eq!(saved.bytes(), x.size_bytes(), "the stream's own rows are kept, not the gathered");
    let y = rank.of_split(&y, width, cols.clone());
    let dy = rank.split("dy", width, &cols);
    let (dx, work) = layer.backward_input(&rank.weights, saved, dy, ctx, &mut rank.grads)?;
    rank.run(work, ctx)?;
    Ok((y, rank.of_stream(&dx, HIDDEN)))
}

#[test]
fn column_linear_equals_its_serial_self() {
    let cases: [(&str, &Parts, &[&'static str]); 6] = [
        ("one section", &[("w", 32, 32)], &["b"]),
        ("without bias", &[("w", 32, 32)], &[]),
        ("gate and up", &[("gate", 16, 16), ("up", 16, 16)], &[]),
        ("qkv", &[("q", 32, 4), ("k", 32, 4), ("v", 32, 4)], &["qb", "kb", "vb"]),
        ("2 kv heads", &[("q", 32, 4), ("k", 16, 2), ("v", 16, 2)], &["qb", "kb", "vb"]),
        ("1 kv head", &[("q", 32, 4), ("k", 8, 1), ("v", 8, 1)], &["qb", "kb", "vb"]),
    ];
    let mut compared = 0;
    for (name, parts, biases) in cases {
        let params = column_params(parts, biases);
        compared += compare(name, &params, &|rank, ctx| column(rank, ctx, parts, biases));
    }
    assert_eq!(compared, 6 * COMPARED);
}

fn row(rank: &mut Rank, ctx: &Context<'_>, biased: bool) -> Result<(Part, Part), NnError> {
    let cols: Vec<usize> = rank.local("w").ranges[1].clone().collect();
    let bias = biased.then(|| rank.find(&["b"]));
    let params = (rank.find(&["w"]), bias);
    let (numerics, name) = (ctx.numerics, Name::new("row"));
    let layer = RowLinear::new(rank.group.clone(), params, cols.len(), HIDDEN, numerics, name);
    let x = rank.split("x", 32, &cols);
    let (y, saved) = layer.forward(&rank.weights, x, ctx)?;
    let y = rank.of_stream(&y, HIDDEN);
    let dy = rank.stream("dy", HIDDEN);
    let (dx, work) = layer.backward_input(&rank.weights, saved, &dy, ctx, &mut rank.grads)?;
    rank.run(work, ctx)?;
    Ok((y, rank.of_split(&dx, 32, cols)))
}

#[test]
fn row_linear_equals_its_serial_self() {
    let mut compared = 0;
    for biased in [false, true] {
        let mut params = vec![param("w", [HIDDEN, 32], Some((1, 32)))];
        params.extend(biased.then(|| param("b", [HIDDEN], None)));
        compared += compare("row", &params, &|rank, ctx| row(rank, ctx, biased));
    }
    assert_eq!(compared, 2 * COMPARED);
}
