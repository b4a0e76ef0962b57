//! Stages and their segments.

use crate::support::{Batch, Rank, Setup, ids};
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType};
use trine_comm::SelfComm;
use trine_models::{Builder, PieceLayer, RankParts, StageModel, zoo};
use trine_nn::{Context, GradStore, Layer, Mode, NnError, Numerics, ParamStore, Saved, WeightWork};
use trine_spec::{
    OwnBody, OwnPiece, Piece, PieceParts, RankLayout, RankRequest, StagePieces, split_layers,
};
use trine_testkit::toy;

#[test]
fn stages_one_behind_the_other_are_the_whole_model() {
    let mut compared = 0;
    for model in [toy::gpt(), toy::llama(2)] {
        let whole = Rank::serial(&Setup::whole(model.clone(), DType::F32));
        let batch = Batch::new(&model);
        let (losses, _) =
            whole.stage.forward(&whole.weights, ids(&batch), &whole.context(&batch)).unwrap();
        for pp in [2, 3, 5] {
            let mut x = ids(&batch);
            for StagePieces { pieces, .. } in
                split_layers(&model.parts(1).unwrap(), pp, None).unwrap()
            {
                let setup =
                    Setup { pieces, tied_apart: true, ..Setup::whole(model.clone(), DType::F32) };
                let stage = Rank::serial(&setup);
                assert_eq!(stage.stage.pieces(), setup.pieces);
                let y = stage.stage.forward(&stage.weights, x, &stage.context(&batch)).unwrap().0;
                // Out of the stage's pool, which ends with it.
                x = Act::new(Buf::from_vec(y.typed::<f32>().unwrap().to_vec()));
            }
            assert_eq!(x.to_f64_vec().unwrap(), losses.to_f64_vec().unwrap());
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 3);
}

#[test]
fn segments_follow_the_buckets_and_run_from_the_last() {
    let model = toy::gpt();
    let apart =
        Setup { tied_apart: true, bucket_elements: 1, ..Setup::whole(model.clone(), DType::F32) };
    let rank = Rank::serial(&apart);
    // One a piece, and one for each copy of the tied embedding.
    assert_eq!(rank.stage.segments(), model.layers + 2 + 2);
    assert_eq!(rank.stage.segments(), rank.layout.buckets.len());
    let batch = Batch::new(&model);
    let ctx = rank.context(&batch);
    let (_, mut states) = rank.stage.forward(&rank.weights, ids(&batch), &ctx).unwrap();
    let (mut grads, dy) = (rank.grads(), Act::new(Buf::zeros(DType::F32, 0)));
    let error =
        rank.stage.backward_input(0, &rank.weights, &mut states, dy, &ctx, &mut grads).unwrap_err();
    assert!(matches!(error, NnError::Saved { held: (0, 7), expected: (0, 1) }), "{error}");
}

#[test]
fn evaluation_keeps_nothing_and_draws_no_dropout() {
    let model = trine_spec::ModelSpec { dropout: 0.5.into(), ..toy::gpt() };
    let rank = Rank::serial(&Setup::whole(model.clone(), DType::F32));
    let batch = Batch::new(&model);
    let ctx = rank.context(&batch);
    let train =
        rank.stage.forward(&rank.weights, ids(&batch), &ctx).unwrap().0.to_f64_vec().unwrap();
    let again =
        rank.stage.forward(&rank.weights, ids(&batch), &ctx).unwrap().0.to_f64_vec().unwrap();
    assert_eq!(train, again, "masks are functions of coordinates");
    let eval = Context { mode: Mode::Eval, ..ctx };
    let (losses, states) = rank.stage.forward(&rank.weights, ids(&batch), &eval).unwrap();
    assert!(states.iter().all(|state| state.bytes() == 0));
    let dry = Rank::serial(&Setup::whole(
        trine_spec::ModelSpec { dropout: 0.0.into(), ..model },
        DType::F32,
    ));
    let (expected, _) = dry.stage.forward(&dry.weights, ids(&batch), &dry.context(&batch)).unwrap();
    assert_eq!(losses.to_f64_vec().unwrap(), expected.to_f64_vec().unwrap());
    assert_ne!(losses.to_f64_vec().unwrap(), train);
}

#[test]
fn what_a_stage_does_not_hold_is_named() {
    let model = toy::gpt();
    let setup = Setup { pieces: vec![Piece::Block(0)], ..Setup::whole(model, DType::F32) };
    let rank = Rank::serial(&setup);
    let batch = Batch::new(&setup.model);
    let x = rank.noise("x", 16 * 32);
    let ctx = rank.context(&batch);
    let error = rank.stage.logits(&rank.weights, x, &ctx).unwrap_err().to_string();
    assert_eq!(error, "logits needs an output layer on this stage");
}

/// Gives what it is told to, whatever goes in.
#[derive(Debug)]
struct Gives {
    y: (DType, usize),
    dx: (DType, usize),
}

impl Layer for Gives {
    fn forward(&self, _: &ParamStore, _: Act, _: &Context<'_>) -> Result<(Act, Saved), NnError> {
        Ok((Act::new(Buf::zeros(self.y.0, self.y.1)), Saved::nothing()))
    }

    fn backward_input(
        &self,
        _: &ParamStore,
        _: Saved,
        _: Act,
        _: &Context<'_>,
        _: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        Ok((Act::new(Buf::zeros(self.dx.0, self.dx.1)), WeightWork::nothing()))
    }
}

/// Block 1 of a model is a layer of one's own.
#[test]
fn what_a_layer_gives_must_fit_the_next_one() {
    let setup = Setup::whole(toy::gpt(), DType::F32);
    let batch = Batch::new(&setup.model);
    let right = (DType::F32, 16 * 32);
    let error = |y, dx| {
        let build = |b: &Builder<'_>, part: &PieceParts| match part.piece {
            Piece::Block(1) => Ok(PieceLayer::Inner(Box::new(Gives { y, dx }))),
            Piece::Embedding | Piece::Block(_) | Piece::Head => zoo(b, part),
        };
        let rank = Rank::built(&setup, SelfComm::new(), &build).unwrap();
        let (stage, weights, ctx) = (&rank.stage, &rank.weights, rank.context(&batch));
        let scored = stage.logits(weights, ids(&batch), &ctx).map(drop);
        let forward = stage.forward(weights, ids(&batch), &ctx);
        assert_eq!(forward.is_err(), scored.is_err());
        let (_, mut states) = forward.map_err(|error| error.to_string())?;
        let (mut grads, mut dy) = (rank.grads(), Act::new(Buf::zeros(DType::F32, 0)));
        for segment in (0..stage.segments()).rev() {
            let back = stage.backward_input(segment, weights, &mut states, dy, &ctx, &mut grads);
            dy = back.map_err(|error| error.to_string())?.0;
        }
        Ok::<_, String>(())
    };
    error(right, right).unwrap();
    for (y, dx, says) in [
        (
            (DType::F32, 7),
            right,
            "block 1 gives a stream of 7 elements of f32, expected 512 of f32",
        ),
        ((DType::F64, 512), right, "gives a stream of 512 elements of f64, expected 512 of f32"),
        (right, (DType::F32, 0), "block 1 gives a gradient of 0 elements of f32, expected 512"),
    ] {
        let text = error(y, dx).unwrap_err();
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn a_layer_must_be_of_the_kind_of_its_piece() {
    let setup = Setup::whole(toy::gpt(), DType::F32);
    for (place, given, says) in [
        (Piece::Block(1), Piece::Head, "gives block 1 a layer that gives losses, and a layer"),
        (Piece::Embedding, Piece::Head, "gives embedding a layer that gives losses"),
        (Piece::Head, Piece::Block(0), "gives head a layer that gives a stream, and a layer"),
    ] {
        let build = |b: &Builder<'_>, part: &PieceParts| {
            let other = if part.piece == place { given } else { part.piece };
            zoo(b, &b.model.part(other, 1))
        };
        let built = Rank::built(&setup, SelfComm::new(), &build);
        let text = built.err().expect("refused").to_string();
        assert!(text.contains(says), "{text}");
    }
}

/// A piece of one's own that works forward and fails backward.
#[derive(Debug)]
struct Lame;

impl Layer for Lame {
    fn forward(&self, _: &ParamStore, x: Act, _: &Context<'_>) -> Result<(Act, Saved), NnError> {
        Ok((x, Saved::nothing()))
    }

    fn backward_input(
        &self,
        _: &ParamStore,
        _: Saved,
        _: Act,
        _: &Context<'_>,
        _: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        Err(NnError::Missing { layer: "lame", what: "a backward pass" })
    }
}

#[test]
fn a_piece_of_ones_own_is_named_where_it_fails_and_where_nobody_builds_it() {
    let mut model = toy::gpt().parts(1).unwrap();
    let body = OwnBody { name: "lame block".into(), ..OwnBody::default() };
    model.replace(1, OwnPiece { params: vec![], body, flops_per_token: 0.0 }).unwrap();
    let stages = [StagePieces { stage: 0, pieces: vec![Piece::Block(1)] }];
    let layout = Arc::new(RankLayout::new(&RankRequest::serial(&model, &stages)).unwrap());
    let parts = RankParts {
        model: &model,
        layout: &layout,
        comm: SelfComm::new(),
        sequence_parallel: false,
        numerics: Numerics::Fast,
        compute: DType::F32,
        seed: 1,
        place: &trine_buffer::Place::Host,
    };
    let error = StageModel::of_rank(&parts, &zoo).unwrap_err().to_string();
    assert!(error.starts_with("block 1 is a lame block, which the zoo does not have"), "{error}");

    let stage = StageModel::of_rank(&parts, &|_, _| Ok(PieceLayer::Inner(Box::new(Lame)))).unwrap();
    let whole = Rank::serial(&Setup::whole(toy::gpt(), DType::F32));
    let batch = Batch::new(&whole.setup.model);
    let (ctx, weights) = (whole.context(&batch), ParamStore::zeros(layout.clone(), DType::F32));
    let x = whole.noise("x", 16 * 32);
    let (y, mut states) = stage[0].forward(&weights, x, &ctx).unwrap();
    let mut grads = GradStore::new(layout, DType::F32, Numerics::Fast);
    let failed = stage[0].backward_input(0, &weights, &mut states, y, &ctx, &mut grads);
    let error = failed.unwrap_err().to_string();
    assert!(error.starts_with("block 1 (\"lame block\"): lame needs a backward pass"), "{error}");
}
