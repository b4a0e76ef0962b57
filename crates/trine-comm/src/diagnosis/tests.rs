//! Verdicts on runs as heartbeats show them.

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn waiting(rank: usize, what: &str, sequence: u64, waits_for: &[usize]) -> Beat {
    let meeting =
        Meeting { group: "world[0,1,2,3]".into(), what: what.into(), ends: None, sequence };
    let call = format!("{what} #{sequence}");
    let doing = Doing::Waiting { call, meeting, waits_for: waits_for.into() };
    Beat { place: "training step 3, action 5 (F0.1)".into(), doing, ..Beat::unheard(rank, "a") }
}

fn running(rank: usize) -> Beat {
    Beat { place: "training step 3".into(), ..Beat::unheard(rank, "b") }
}

/// All ranks heard just now, with the given seconds without progress.
fn verdict(beats: &[(Beat, u64)]) -> Option<Diagnosis> {
    let sightings: Vec<Sighting<'_>> = beats
        .iter()
        .map(|(beat, quiet_s)| Sighting {
            beat,
            unheard: Duration::ZERO,
            quiet: Duration::from_secs(*quiet_s),
        })
        .collect();
    judge(&sightings, DEADLINE)
}

#[test]
fn a_rank_that_runs_without_progress_is_named_through_those_that_wait_for_others() {
    // 0 waits for 1, which waits for 2, which hangs.
    let chain = |quiet_s| {
        let beats = [
            (waiting(0, "recv", 1, &[1]), 30),
            (waiting(1, "recv", 7, &[2]), 30),
            (running(2), quiet_s),
        ];
        verdict(&beats)
    };
    assert_eq!(chain(9), None);
    let found = chain(10).unwrap();
    assert_eq!(found.rank, 2);
    let text = found.to_string();
    for part in [
        "rank 2 on b: runs without progress for 10.0s",
        "at that moment: rank 2 on b, in training step 3, runs",
        "rank 0 on a, in training step 3, action 5 (F0.1), waits for rank 1 in recv #1",
        "waits for rank 2 in recv #7",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
}

#[test]
fn who_has_come_is_not_waited_for() {
    let all = [0, 1, 2, 3];
    let beats = |last: Beat| {
        let others = |rank: usize| all.iter().copied().filter(|other| *other != rank).collect();
        let mut beats: Vec<(Beat, u64)> = (0..3usize)
            .map(|rank| {
                let others: Vec<usize> = others(rank);
                (waiting(rank, "all_reduce", 4, &others), 20)
            })
            .collect();
        beats.push((last, 20));
        beats
    };
    assert_eq!(verdict(&beats(running(3))).unwrap().rank, 3);
    // It finished without coming.
    let done = Beat { doing: Doing::Finished, ..running(3) };
    let found = verdict(&beats(done)).unwrap();
    assert_eq!((found.rank, &*found.failure), (3, "has finished, while others wait for it"));
    // Everybody has come: the transport is to blame.
    let found = verdict(&beats(waiting(3, "all_reduce", 4, &[0, 1, 2]))).unwrap();
    assert!(found.failure.contains("nothing arrives between the hosts"), "{found}");
    // It waits elsewhere, for one of those that wait for it.
    let found = verdict(&beats(waiting(3, "barrier", 4, &[0, 1, 2]))).unwrap();
    assert_eq!(found.failure, "ranks 0, 1, 2, 3 wait for each other, and none can go on");
    assert!(found.to_string().contains("barrier #4"), "{found}");
}

#[test]
fn a_long_phase_has_its_own_deadline() {
    let slow = |deadline_s: Option<u64>, quiet_s| {
        let deadline = deadline_s.map(Duration::from_secs);
        let saving = Beat { deadline, ..running(1) };
        verdict(&[(waiting(0, "recv", 1, &[1]), quiet_s), (saving, quiet_s)])
    };
    assert!(slow(None, 50).is_some());
    assert!(slow(Some(100), 50).is_none());
    assert!(slow(Some(100), 100).is_some());
    // A shorter one than usual does not count.
    assert!(slow(Some(1), 9).is_none());
    assert!(slow(Some(1), 10).is_some());
}

#[test]
fn nobody_is_blamed_while_something_moves() {
    // The one that others wait for computes and shows it.
    assert_eq!(verdict(&[(waiting(0, "recv", 1, &[1]), 500), (running(1), 3)]), None);
    // One that nobody waits for may take its time.
    assert_eq!(verdict(&[(running(0), 500), (running(1), 3)]), None);
    // A circle that has only just closed.
    let circle = |quiet_s| {
        verdict(&[(waiting(0, "recv", 1, &[1]), 20), (waiting(1, "send", 1, &[0]), quiet_s)])
    };
    assert_eq!(circle(2), None);
    assert!(circle(10).is_some());
    assert_eq!(verdict(&[]), None);
}

#[test]
fn ranks_that_are_not_heard_of_are_lost_whatever_they_did() {
    let beats = [running(0), waiting(1, "recv", 1, &[0]), running(2)];
    let seen = |unheard_s: [u64; 3]| {
        let sighting = |(beat, unheard_s)| Sighting {
            beat,
            unheard: Duration::from_secs(unheard_s),
            quiet: Duration::from_secs(unheard_s),
        };
        let sightings: Vec<Sighting<'_>> = beats.iter().zip(unheard_s).map(sighting).collect();
        judge(&sightings, DEADLINE)
    };
    assert_eq!(seen([0, 9, 9]), None);
    let found = seen([0, 12, 12]).unwrap();
    assert_eq!(found.rank, 1);
    assert!(found.failure.starts_with("no heartbeat for 12.0s"), "{found}");
    assert!(found.failure.ends_with("nor is there any of rank 2"), "{found}");
    // One that has finished has nothing to say any more.
    let done = Beat { doing: Doing::Finished, ..running(0) };
    let long = Duration::from_secs(99);
    assert_eq!(judge(&[Sighting { beat: &done, unheard: long, quiet: long }], DEADLINE), None);
}

#[test]
fn many_ranks_are_counted_and_not_listed() {
    let beats: Vec<Beat> = (0..100).map(running).collect();
    let text = Diagnosis { rank: 3, failure: "is gone".into(), beats }.to_string();
    assert_eq!(text.lines().count(), 2 + OTHERS_SHOWN + 1);
    assert!(text.ends_with("others: 83"), "{text}");
}
