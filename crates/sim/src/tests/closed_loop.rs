//! Clients that play one session after the other.

use std::num::NonZeroU32;

use super::*;

#[test]
fn a_session_begins_when_the_client_s_last_one_ends() {
    let clients = 5;
    let workload = chat(200, 25.0).in_closed_loop(NonZeroU32::new(clients).unwrap());
    let outcome = run(&cluster(3, "jsq"), &workload);
    let sessions = workload.sessions() as usize;
    let mut begins = vec![Timestamp::ZERO; sessions];
    let mut ends = vec![Timestamp::ZERO; sessions];
    for record in &outcome.records {
        let session = record.session.index();
        ends[session] = ends[session].max(record.end);
        if record.turn == 0 {
            begins[session] = record.arrival;
        }
    }
    assert!(sessions > 4 * clients as usize);
    for (session, begin) in begins.iter().enumerate() {
        let before = session.checked_sub(clients as usize).map_or(Timestamp::ZERO, |s| ends[s]);
        assert_eq!(*begin, before, "session {session}");
    }
}
