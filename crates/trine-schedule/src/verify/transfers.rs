//! Every send has its receive and the reverse, in one order for each ordered pair of ranks.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{VerifyError, VerifyErrorKind};
use crate::Schedule;
use crate::action::Parcel;

/// What one rank sends to another, and what the other receives from it, with positions.
#[derive(Default)]
struct Channel {
    sent: Vec<(Parcel, usize)>,
    received: Vec<(Parcel, usize)>,
}

pub(super) fn check(schedule: &Schedule) -> Result<(), VerifyError> {
    for ((from, to), channel) in channels(schedule) {
        check_channel(schedule, from, to, &channel)?;
    }
    Ok(())
}

fn channels(schedule: &Schedule) -> BTreeMap<(usize, usize), Channel> {
    let mut channels: BTreeMap<(usize, usize), Channel> = BTreeMap::new();
    for (rank, list) in schedule.actions.iter().enumerate() {
        for (position, action) in list.iter().enumerate() {
            let (send, recv) = action.transfers();
            if let Some((send, message)) = send.and_then(|send| Some((send, send.sent()?))) {
                channels.entry((rank, send.peer)).or_default().sent.push((message, position));
            }
            if let Some(recv) = recv {
                let channel = channels.entry((recv.peer, rank)).or_default();
                channel.received.push((recv.received(), position));
            }
        }
    }
    channels
}

fn check_channel(
    schedule: &Schedule,
    from: usize,
    to: usize,
    channel: &Channel,
) -> Result<(), VerifyError> {
    use VerifyErrorKind::{Duplicate, TransferOrder, UnmatchedReceive, UnmatchedSend};
    let Channel { sent, received } = channel;
    for (rank, list) in [(from, sent), (to, received)] {
        if let Some((first, again)) = repeated(list) {
            let expected = format!("this message once; it is at position {first} already");
            return Err(VerifyError::at(schedule, Duplicate, (rank, again), expected));
        }
    }
    if let Some(position) = unmatched(sent, received) {
        let expected = format!("a receive of it from rank {from} in the list of rank {to}");
        return Err(VerifyError::at(schedule, UnmatchedSend, (from, position), expected));
    }
    if let Some(position) = unmatched(received, sent) {
        let expected = format!("a send of it to rank {to} in the list of rank {from}");
        return Err(VerifyError::at(schedule, UnmatchedReceive, (to, position), expected));
    }
    let mut pairs = sent.iter().zip(received);
    if let Some((sent, received)) = pairs.find(|(sent, received)| sent.0 != received.0) {
        let expected = format!(
            "the {} of micro-batch {} for stage {}, which rank {from} sends next (at position {})",
            sent.0.payload, sent.0.micro_batch, sent.0.to_stage, sent.1
        );
        let cells = [(to, received.1), (from, sent.1)];
        return Err(VerifyError::marked(schedule, TransferOrder, &cells, expected));
    }
    Ok(())
}

/// The positions of the first message that occurs again, and of its second occurrence.
fn repeated(list: &[(Parcel, usize)]) -> Option<(usize, usize)> {
    let mut seen = HashMap::with_capacity(list.len());
    list.iter().find_map(|&(message, again)| Some((seen.insert(message, again)?, again)))
}

/// The position of the first message of `list` that `other` lacks.
fn unmatched(list: &[(Parcel, usize)], other: &[(Parcel, usize)]) -> Option<usize> {
    let other: HashSet<Parcel> = other.iter().map(|entry| entry.0).collect();
    list.iter().find(|(message, _)| !other.contains(message)).map(|entry| entry.1)
}
