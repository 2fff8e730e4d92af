use super::*;

/// The payload of a batch; another life has other bytes.
fn payload(life: u8, seq: u64) -> Vec<u8> {
    [&[life][..], &seq.to_be_bytes()].concat()
}

fn live(tracker: &mut Tracker, life: u8, seq: u64, can_replay: bool) -> Admission {
    tracker.live(seq, &payload(life, seq), can_replay)
}

fn replayed(tracker: &mut Tracker, life: u8, seq: u64) -> Admission {
    tracker.replayed(seq, &payload(life, seq), true)
}

const TAKE: Admission = Admission::Take(None);

/// A tracker that has seen batches `0..=last` of life 1 live.
fn seen(last: u64) -> Tracker {
    let mut tracker = Tracker::new();
    tracker.connected();
    for seq in 0..=last {
        assert_eq!(live(&mut tracker, 1, seq, false), TAKE);
    }
    tracker
}

#[test]
fn a_whole_life_from_its_beginning() {
    let mut tracker = Tracker::new();
    tracker.connected();
    assert_eq!(tracker.replay_start(), 0);
    assert!(!tracker.replay_ended(), "a server that has published nothing");
    for seq in 0..5 {
        assert_eq!(live(&mut tracker, 1, seq, true), TAKE);
    }
}

#[test]
fn what_a_replay_brought_is_dropped_live() {
    let mut tracker = Tracker::new();
    tracker.connected();
    for seq in 0..5 {
        assert_eq!(replayed(&mut tracker, 1, seq), TAKE);
    }
    assert!(!tracker.replay_ended());
    assert_eq!(live(&mut tracker, 1, 3, true), Admission::Drop);
    assert_eq!(live(&mut tracker, 1, 4, true), Admission::Drop);
    assert_eq!(live(&mut tracker, 1, 5, true), TAKE);
}

#[test]
fn a_gap_is_replayed_or_lost() {
    let mut tracker = seen(2);
    assert_eq!(live(&mut tracker, 1, 6, true), Admission::Replay);
    assert_eq!(tracker.replay_start(), 3);
    let mut no_answer = tracker.clone();
    for seq in 3..6 {
        assert_eq!(replayed(&mut tracker, 1, seq), TAKE);
    }
    assert_eq!(live(&mut tracker, 1, 6, false), TAKE);

    let lost = Admission::Take(Some(Loss::Gap { batches: 3 }));
    assert_eq!(live(&mut no_answer, 1, 6, false), lost);
    assert_eq!(live(&mut no_answer, 1, 7, false), TAKE);
}

#[test]
fn a_hole_in_a_replay_takes_another() {
    let mut tracker = seen(0);
    assert_eq!(live(&mut tracker, 1, 9, true), Admission::Replay);
    assert_eq!(replayed(&mut tracker, 1, 1), TAKE);
    assert_eq!(replayed(&mut tracker, 1, 4), Admission::Replay);
    assert_eq!(tracker.replay_start(), 2);
}

#[test]
fn a_subscription_in_the_middle_says_so() {
    let mut tracker = Tracker::new();
    tracker.connected();
    let lost = Admission::Take(Some(Loss::Beginning { batches: 40 }));
    let mut without = tracker.clone();
    assert_eq!(replayed(&mut tracker, 1, 40), lost);
    assert_eq!(replayed(&mut tracker, 1, 41), TAKE);

    assert_eq!(live(&mut without, 1, 40, true), Admission::Replay);
    assert_eq!(live(&mut without, 1, 40, false), lost);
    assert_eq!(live(&mut without, 1, 41, false), TAKE);
}

#[test]
fn the_same_server_is_known_by_the_batch_seen_last() {
    let mut tracker = seen(7);
    tracker.connected();
    assert_eq!(tracker.replay_start(), 7);
    assert_eq!(replayed(&mut tracker, 1, 7), Admission::Drop);
    assert_eq!(replayed(&mut tracker, 1, 8), TAKE);
    assert!(!tracker.replay_ended());
    assert_eq!(live(&mut tracker, 1, 9, true), TAKE);
}

#[test]
fn a_server_that_is_behind_has_begun_anew() {
    let mut tracker = seen(7);
    tracker.connected();
    assert!(tracker.replay_ended(), "it has no batch 7");
    assert_eq!(tracker.replay_start(), 0);
    assert_eq!(replayed(&mut tracker, 2, 0), TAKE);
    assert!(!tracker.replay_ended());
    assert_eq!(live(&mut tracker, 2, 1, true), TAKE);
}

#[test]
fn a_server_that_is_ahead_with_other_bytes_has_begun_anew() {
    let mut tracker = seen(7);
    tracker.connected();
    assert_eq!(replayed(&mut tracker, 2, 7), Admission::Restarted);
    assert_eq!(tracker.replay_start(), 0);
    for seq in 0..9 {
        assert_eq!(replayed(&mut tracker, 2, seq), TAKE);
    }
}

#[test]
fn a_server_whose_buffer_has_moved_on_cannot_be_told() {
    let mut tracker = seen(7);
    tracker.connected();
    assert_eq!(replayed(&mut tracker, 1, 20), Admission::Take(Some(Loss::Unverified)));
    assert_eq!(replayed(&mut tracker, 1, 21), TAKE);
}

#[test]
fn without_replay_a_new_connection_is_a_restart_or_a_loss() {
    let mut tracker = seen(7);
    tracker.connected();
    let mut restarted = tracker.clone();
    // Even with the number that would come next: another life may have come as far.
    assert_eq!(live(&mut tracker, 1, 8, false), Admission::Take(Some(Loss::Unverified)));
    assert_eq!(live(&mut tracker, 1, 9, false), TAKE);

    assert_eq!(live(&mut restarted, 2, 0, false), Admission::Restarted);
    assert_eq!(live(&mut restarted, 2, 0, false), TAKE);
    assert_eq!(live(&mut restarted, 2, 1, false), TAKE);
}

#[test]
fn a_number_that_goes_back_on_one_connection_is_a_restart() {
    let mut tracker = seen(7);
    assert_eq!(live(&mut tracker, 2, 2, true), Admission::Restarted);
    assert_eq!(live(&mut tracker, 2, 2, true), Admission::Replay);
    assert_eq!(tracker.replay_start(), 0);
    for seq in 0..4 {
        assert_eq!(replayed(&mut tracker, 2, seq), TAKE);
    }
    assert_eq!(live(&mut tracker, 2, 2, false), Admission::Drop);
}

#[test]
fn numbers_at_the_end_of_the_range_do_not_overflow() {
    let mut tracker = seen(0);
    let batches = u64::MAX - 1;
    let lost = Admission::Take(Some(Loss::Gap { batches }));
    assert_eq!(live(&mut tracker, 1, u64::MAX, false), lost);
    assert_eq!(live(&mut tracker, 1, u64::MAX, false), Admission::Restarted);
}

#[test]
fn a_hole_that_stays_is_lost_and_what_is_behind_it_taken() {
    let mut tracker = seen(0);
    let lost = Admission::Take(Some(Loss::Gap { batches: 2 }));
    assert_eq!(tracker.replayed(3, &payload(1, 3), false), lost);
    assert_eq!(tracker.replayed(4, &payload(1, 4), false), TAKE);
}

#[test]
fn a_position_goes_through_json_and_is_the_same_everywhere() {
    assert_eq!(Tracker::new().position(), None);
    let mut fresh = Tracker::new();
    assert!(!fresh.replay_ended());
    assert_eq!(fresh.position(), Some(Position::BEGINNING));

    let position = seen(7).position().unwrap();
    let json = serde_json::to_string(&position).unwrap();
    // XXH3 of `\x01\0\0\0\0\0\0\0\x07`: another value would break positions written before.
    assert_eq!(json, r#"{"next":8,"last_hash":7922164788655237382}"#);
    assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position);
    assert!(serde_json::from_str::<Position>(r#"{"next":8,"last_hash":0,"more":1}"#).is_err());
}

#[test]
fn a_position_goes_on_as_the_tracker_it_is_of() {
    let resumed = || {
        let mut tracker = Tracker::at(seen(7).position().unwrap());
        tracker.connected();
        tracker
    };
    let mut tracker = resumed();
    assert_eq!(tracker.replay_start(), 7);
    assert_eq!(replayed(&mut tracker, 1, 7), Admission::Drop);
    assert_eq!(replayed(&mut tracker, 1, 8), TAKE);
    assert_eq!(replayed(&mut resumed(), 2, 7), Admission::Restarted);
    assert!(resumed().replay_ended(), "it has no batch 7");
    let unverified = Admission::Take(Some(Loss::Unverified));
    assert_eq!(replayed(&mut resumed(), 1, 20), unverified);
    assert_eq!(live(&mut resumed(), 1, 8, false), unverified);
    assert_eq!(live(&mut resumed(), 2, 0, false), Admission::Restarted);

    let mut beginning = Tracker::at(Position::BEGINNING);
    beginning.connected();
    assert_eq!(beginning.replay_start(), 0);
    assert_eq!(replayed(&mut beginning, 1, 0), TAKE);
}

#[test]
fn a_check_recognises_the_peer_by_the_batch_seen_last() {
    let recognise = |life, seq| seen(7).recognise(seq, &payload(life, seq));
    assert!(seen(7).must_recognise());
    assert_eq!(seen(7).check_start(), 7);
    assert_eq!(recognise(1, 7), Recognition::Same);
    assert_eq!(recognise(2, 7), Recognition::Other);
    assert_eq!(recognise(1, 8), Recognition::Other, "batch 7 is gone");
    assert_eq!(recognise(1, 3), Recognition::Open);

    // Nothing to be recognised by, or nobody known who could be another.
    assert!(!Tracker::at(Position::BEGINNING).must_recognise());
    let mut unverified = seen(7);
    unverified.connected();
    assert!(!unverified.must_recognise());
}
