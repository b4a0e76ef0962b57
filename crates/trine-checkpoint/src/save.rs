//! Saving: every rank takes part, one writes.

use crate::error::BoxError;
use crate::plan::{Plan, Round, owned, sender};
use crate::writer::Writer;
use crate::{CheckpointError, SaveRequest, folder};
use std::path::PathBuf;
use trine_buffer::Buf;
use trine_comm::{Communicator, Name};

/// The world rank that writes.
const WRITER: usize = 0;

/// Hands out the calling rank's whole local bucket: quantity, bucket. It is called on every rank of
/// a pipeline coordinate at the same time and in the same order, so it may gather what data-parallel ranks have
/// shared out among themselves.
pub type BucketSource<'a> = &'a mut dyn FnMut(&str, usize) -> Result<Buf, BoxError>;

/// Saves a checkpoint; a collective of `world`. It is complete and on the medium when this returns;
/// the older ones are as they were, whatever happens: [`prune`](crate::prune) removes them.
///
/// Rank 0 writes, one bucket at a time, so it holds no more than one bucket of all tensor ranks at
/// once. After each bucket all ranks learn whether to go on: nobody runs ahead, and when the disk
/// fails, everybody gets rank 0's error and may train on. A rank that cannot hand out a bucket, or
/// whose communicator fails, returns alone: its caller must stop the world.
///
/// # Errors
/// No disk space, a file system that refuses, layouts that do not hold the model, a bucket that is
/// not what its layout says, an element that is not finite, a failed operation of `world`.
pub fn save(
    request: &SaveRequest<'_>,
    world: &dyn Communicator,
    bucket: BucketSource<'_>,
) -> Result<PathBuf, CheckpointError> {
    if world.size() != request.mesh.world() {
        let (ranks, needed) = (world.size(), request.mesh.world());
        let why = format!("the size of the world is {ranks}, that of the mesh {needed}");
        return Err(CheckpointError::Layout(why));
    }
    let plan = Plan::new(request)?;
    let begun = (world.rank() == WRITER).then(|| Writer::begin(request, &plan)).transpose();
    let saved = agree(world, begun).and_then(|writer| write(request, world, &plan, writer, bucket));
    if saved.is_err() && world.rank() == WRITER {
        // A full disk should not stay full. What cannot be removed now, the next save removes.
        drop(
            request.storage.remove_dir(&request.dir.join(folder::temporary_name(request.run.step))),
        );
    }
    saved?;
    Ok(request.dir.join(folder::step_name(request.run.step)))
}

/// All rounds, and the end.
fn write(
    request: &SaveRequest<'_>,
    world: &dyn Communicator,
    plan: &Plan<'_>,
    mut writer: Option<Writer<'_>>,
    bucket: BucketSource<'_>,
) -> Result<(), CheckpointError> {
    for &round in &plan.rounds {
        let parts = exchange(request, world, plan, round, bucket)?;
        let written = writer.as_mut().map_or(Ok(()), |writer| writer.write(round, &parts));
        agree(world, written)?;
    }
    agree(world, writer.map_or(Ok(()), Writer::finish))
}

/// Brings one bucket of a pipeline rank to the writer, which gets a buffer for each tensor rank that owns
/// something in it; other ranks get nothing.
fn exchange(
    request: &SaveRequest<'_>,
    world: &dyn Communicator,
    plan: &Plan<'_>,
    round: Round,
    bucket: BucketSource<'_>,
) -> Result<Vec<Option<Buf>>, CheckpointError> {
    let Round { quantity, pp, bucket: index } = round;
    let (me, layouts) = (world.rank(), &request.ranks[pp]);
    let quantity = plan.quantities[quantity];
    let at = request.mesh.coordinate(me);
    let mut mine = if at.pp == pp {
        let (len, buf) = (layouts[at.tp].buckets[index].len, bucket(quantity, index));
        Some(checked(request, quantity, index, len, buf)?)
    } else {
        None
    };
    let mut parts = Vec::new();
    for (tp, layout) in layouts.iter().enumerate() {
        let (from, name) = (sender(request.mesh, pp, tp), round_name(round));
        let owns = owned(layout, index).next().is_some();
        if me == WRITER {
            parts.push(match (owns, from == me) {
                (false, _) => None,
                (true, true) => mine.take(),
                (true, false) => {
                    let room = Buf::zeros(request.dtype, layout.buckets[index].len);
                    Some(world.recv(room, from, name)?)
                }
            });
        } else if owns && from == me {
            mine = mine.map(|buf| world.send(buf, WRITER, name)).transpose()?;
        }
    }
    Ok(parts)
}

fn round_name(round: Round) -> Name {
    Name::new("checkpoint").with("pp", round.pp as u64).with("bucket", round.bucket as u64)
}

/// Refuses a bucket that is not what its layout says.
fn checked(
    request: &SaveRequest<'_>,
    quantity: &str,
    bucket: usize,
    len: usize,
    buf: Result<Buf, BoxError>,
) -> Result<Buf, CheckpointError> {
    let quantity = quantity.to_owned();
    let buf = match buf {
        Ok(buf) => buf,
        Err(source) => return Err(CheckpointError::Source { quantity, bucket, source }),
    };
    let (expected, found, found_len) = (request.dtype, buf.dtype(), buf.len());
    if (found, found_len) != (expected, len) {
        return Err(CheckpointError::Bucket { quantity, bucket, expected, len, found, found_len });
    }
    Ok(buf)
}

/// Tells everybody whether the writer has succeeded. An error of the writer becomes everybody's.
fn agree<T>(
    world: &dyn Communicator,
    outcome: Result<T, CheckpointError>,
) -> Result<T, CheckpointError> {
    let mut message = match &outcome {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().into_bytes(),
    };
    let length = Buf::from_vec(vec![message.len() as u64]);
    let length = world.broadcast(length, WRITER, "checkpoint status")?.typed::<u64>()?[0];
    if length == 0 {
        return outcome;
    }
    message.resize(length as usize, 0);
    let message = world.broadcast(Buf::from_vec(message), WRITER, "checkpoint failure")?;
    outcome.and_then(|_| {
        let text = String::from_utf8_lossy(message.typed::<u8>()?).into_owned();
        Err(CheckpointError::Writer(text))
    })
}
