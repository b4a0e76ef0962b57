//! Every way to share out ranks.

use trine_mesh::Degrees;

/// Every number that divides another one, in ascending order.
pub(crate) fn divisors(number: usize) -> impl Iterator<Item = usize> {
    (1..=number).filter(move |divisor| number.is_multiple_of(*divisor))
}

/// Every split of ranks over the three axes.
pub(crate) fn splits(ranks: usize) -> impl Iterator<Item = Degrees> {
    divisors(ranks).flat_map(move |tp| {
        divisors(ranks / tp).map(move |pp| {
            let dp = ranks / tp / pp;
            Degrees { dp, pp, tp, ..Degrees::SERIAL }
        })
    })
}
