//! Philox4x32-10: a keyed bijection of 128-bit counters whose outputs are random words.

/// Multipliers of the two halves of a round (Salmon et al. 2011, table 2).
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the key grows by from round to round: the golden ratio and √3 − 1, in 32 bits.
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Four random words for a counter under a key, in the word order of the published vectors.
///
/// ```
/// assert_eq!(trine_rng::philox4x32_10([0; 4], [0; 2])[0], 0x6627_e8d5);
/// ```
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [[a], [b], [c], [d]] = philox_lanes(counter.map(|word| [word]), key);
    [a, b, c, d]
}

/// The same for `LANES` counters side by side: word `w` of lane `l` is `counters[w][l]`. Arrays of
/// lanes are what the compiler turns into vector instructions.
#[inline]
pub(crate) fn philox_lanes<const LANES: usize>(
    counters: [[u32; LANES]; 4],
    key: [u32; 2],
) -> [[u32; LANES]; 4] {
    let mut words = counters;
    let mut key = key;
    for _ in 0..ROUNDS {
        words = round(&words, key);
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    words
}

#[inline]
fn round<const LANES: usize>(words: &[[u32; LANES]; 4], key: [u32; 2]) -> [[u32; LANES]; 4] {
    let mut next = [[0; LANES]; 4];
    for lane in 0..LANES {
        let product0 = u64::from(words[0][lane]) * u64::from(MULTIPLIERS[0]);
        let product1 = u64::from(words[2][lane]) * u64::from(MULTIPLIERS[1]);
        next[0][lane] = (product1 >> 32) as u32 ^ words[1][lane] ^ key[0];
        next[1][lane] = product1 as u32;
        next[2][lane] = (product0 >> 32) as u32 ^ words[3][lane] ^ key[1];
        next[3][lane] = product0 as u32;
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows `philox4x32 10` of the Random123 distribution's `kat_vectors`: counter, key, output.
    const KNOWN: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];

    #[test]
    fn published_vectors() {
        for (counter, key, expected) in KNOWN {
            assert_eq!(philox4x32_10(counter, key), expected, "counter {counter:08x?}");
        }
    }

    #[test]
    fn lanes_equal_single_calls() {
        let key = [0xdead_beef, 0x0bad_cafe];
        let mut counters = [[0; 8]; 4];
        for (word, lanes) in counters.iter_mut().enumerate() {
            for (lane, value) in lanes.iter_mut().enumerate() {
                *value = (word as u32 + 1).wrapping_mul(0x9E37_79B9).rotate_left(lane as u32 * 3);
            }
        }
        let out = philox_lanes(counters, key);
        for lane in 0..8 {
            let single = philox4x32_10(counters.map(|word| word[lane]), key);
            assert_eq!(single, out.map(|word| word[lane]));
        }
    }
}
