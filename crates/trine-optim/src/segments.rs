//! The runs of elements that are updated alike.

use crate::groups::Rule;
use std::ops::Range;
use trine_spec::{LocalParam, ParamSpec, RankLayout};

/// A run of bucket elements that are updated alike.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Segment {
    /// Elements of the bucket.
    pub(crate) span: Range<usize>,
    /// How.
    pub(crate) rule: Rule,
}

/// The owned elements of a bucket that are trained, in order. Padding (rows beyond the vocabulary,
/// gaps for alignment) is in no segment, so no rounding, decay or eps can ever change it.
pub(crate) fn segments(
    layout: &RankLayout,
    bucket: usize,
    own: &Range<usize>,
    rule: impl Fn(&ParamSpec) -> Rule,
) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for &index in &layout.buckets[bucket].params {
        let param = &layout.params[index];
        let valid = valid_span(param);
        let span = valid.start.max(own.start)..valid.end.min(own.end);
        if span.is_empty() {
            continue;
        }
        let rule = rule(&param.spec);
        match segments.last_mut() {
            // Fewer, longer kernel calls.
            Some(last) if last.rule == rule && last.span.end == span.start => {
                last.span.end = span.end;
            }
            Some(_) | None => segments.push(Segment { span, rule }),
        }
    }
    segments
}

/// The elements of a parameter's local part that are not padding.
fn valid_span(param: &LocalParam) -> Range<usize> {
    let rows = &param.ranges[0];
    let valid_rows = param.spec.valid_rows.clamp(rows.start, rows.end) - rows.start;
    let width: usize = param.ranges[1..].iter().map(Range::len).product();
    param.offset..param.offset + valid_rows * width
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OptimizerConfig;
    use trine_mesh::{AxisSet, Degrees};
    use trine_spec::{RankRequest, StagePieces, presets};

    fn layout(tp: usize, tp_index: usize) -> RankLayout {
        let mut model = presets::find("gpt2-124m").unwrap().model;
        (model.hidden, model.layers, model.ffn, model.vocab) = (8, 2, 12, 70);
        (model.heads, model.kv_heads, model.head_dim, model.seq_max) = (4, 4, 2, 5);
        let model = model.parts(tp).unwrap();
        let stages = [StagePieces::whole(&model)];
        RankLayout::new(&RankRequest {
            degrees: Degrees { dp: 4, tp, ..Degrees::SERIAL },
            tp_index,
            summed: AxisSet::DP,
            bucket_elements: 200,
            ..RankRequest::serial(&model, &stages)
        })
        .unwrap()
    }

    #[test]
    fn every_trained_element_is_in_one_segment_of_its_decay_group_whatever_the_parts() {
        let config = OptimizerConfig::Sgd { momentum: 0.0, weight_decay: 1.0 };
        let rule = |spec: &ParamSpec| Rule::of(spec, &config, &[]);
        let (mut cases, mut trained) = (0, 0);
        for (tp, tp_index) in [(1, 0), (2, 0), (2, 1)] {
            let layout = layout(tp, tp_index);
            for (bucket, held) in layout.buckets.iter().enumerate() {
                // 0: in no segment; 1: without decay; 2: with decay.
                let mut expected = vec![0; held.len];
                for param in held.params.iter().map(|index| &layout.params[*index]) {
                    expected[valid_span(param)].fill(1 + u8::from(param.spec.decay));
                }
                trained += expected.iter().filter(|group| **group != 0).count();
                for parts in 1..=4 {
                    let mut found = vec![0; held.len];
                    for part in 0..parts {
                        let own = trine_mesh::part(held.len, parts, part);
                        for segment in segments(&layout, bucket, &own, rule) {
                            assert!(own.start <= segment.span.start && segment.span.end <= own.end);
                            for group in &mut found[segment.span] {
                                *group += 1 + segment.rule.decay as u8;
                            }
                        }
                    }
                    assert_eq!(found, expected, "tp {tp}/{tp_index} bucket {bucket} parts {parts}");
                    cases += 1;
                }
            }
        }
        assert!(cases >= 36, "{cases}");
        assert!(trained > 0);
    }

    #[test]
    fn rows_beyond_the_vocabulary_are_in_no_segment() {
        for (tp_index, valid) in [(0, 64), (1, 6)] {
            let layout = layout(2, tp_index);
            let index = layout.find("embedding.token").unwrap();
            let param = &layout.params[index];
            assert_eq!((param.shape(), valid_span(param).len()), (vec![64, 8], valid * 8));
        }
    }
}
