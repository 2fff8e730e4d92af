//! What instances have yet to prefill, as far as a router can tell: the prompts sent there that have shown no first
//! token, in order, and how far the first of them has presumably come.

use std::collections::VecDeque;

use kvroute_types::Timestamp;

/// Work of prompts too short to tell a rate by: what a step costs whatever it computes would be most of their time.
const LEARNT_WORK_MIN: u64 = 500;
/// What a prompt's weight in the rate becomes with each later one.
const RATE_DECAY: f64 = 0.99;
/// Seconds of prefills at the fleet's rate that an instance is credited with, so that its first prompts do not count for much.
const FLEET_S: f64 = 5.0;
/// Most of the first prompt's work that is taken for done before its first token is seen.
const DONE_SHARE_MAX: f64 = 0.9;

/// Prompts sent to one instance that have shown no first token, oldest first.
///
/// vLLM prefills first come, first served, one long prompt at a time (R36 to R39), so the oldest is in progress and those
/// behind it have not begun.
#[derive(Debug, Default)]
pub(crate) struct PrefillLine {
    waiting: VecDeque<Waiting>,
    /// Sum of their work.
    work: u64,
    /// When the first of them got its turn.
    since: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Slot and generation of its flight.
    flight: (u32, u32),
    work: u64,
}

impl PrefillLine {
    /// A prompt of that much work ([`kvroute_policy::prefill_work`]) was sent.
    pub(crate) fn push(&mut self, now: Timestamp, flight: (u32, u32), work: u64) {
        if self.waiting.is_empty() {
            self.since = now;
        }
        self.waiting.push_back(Waiting { flight, work });
        self.work += work;
    }

    /// Its first token was seen, so those before it are done as well, though they have not said so (an answer that is not
    /// streamed does not). Returns its work and the seconds that it took, if it was the first of the line.
    pub(crate) fn first_token(&mut self, now: Timestamp, flight: (u32, u32)) -> Option<(u64, f64)> {
        let at = self.waiting.iter().position(|it| it.flight == flight)?;
        let work = self.waiting[at].work;
        self.work -= self.waiting.drain(..=at).map(|it| it.work).sum::<u64>();
        let taken_s = now.since(self.since).as_secs_f64();
        self.since = now;
        (at == 0).then_some((work, taken_s))
    }

    /// It ended, and if it is still here that is all that is known of it.
    pub(crate) fn remove(&mut self, now: Timestamp, flight: (u32, u32)) {
        let Some(at) = self.waiting.iter().position(|it| it.flight == flight) else { return };
        self.work -= self.waiting.remove(at).map_or(0, |it| it.work);
        if at == 0 {
            self.since = now;
        }
    }

    /// Work that is presumably left, if an instance does `rate` of it in a second.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between nothing and the first one's work"
    )]
    pub(crate) fn left(&self, now: Timestamp, rate: f64) -> u64 {
        let Some(first) = self.waiting.front() else { return 0 };
        let done = now.since(self.since).as_secs_f64() * rate;
        self.work - done.min(first.work as f64 * DONE_SHARE_MAX) as u64
    }
}

/// Prefill work that an instance, or one of a fleet, does in a second, learnt from when first tokens come: the mean of
/// recent prompts, weighted by their time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PrefillRate {
    work: f64,
    taken_s: f64,
}

impl PrefillRate {
    /// A prompt of that much work took so long once it had its turn.
    pub(crate) fn learn(&mut self, work: u64, taken_s: f64) {
        if work >= LEARNT_WORK_MIN && taken_s > 0.0 {
            self.work = self.work * RATE_DECAY + work as f64;
            self.taken_s = self.taken_s * RATE_DECAY + taken_s;
        }
    }

    /// Work per second; 0 while nothing is known.
    pub(crate) fn get(self) -> f64 {
        if self.taken_s > 0.0 { self.work / self.taken_s } else { 0.0 }
    }

    /// Of an instance of a fleet of that rate: its work per second, and that over the fleet's; 0 and 1 while nothing is known
    /// of any.
    pub(crate) fn against(self, fleet: f64) -> (f64, f64) {
        if fleet > 0.0 {
            let rate = (self.work + FLEET_S * fleet) / (self.taken_s + FLEET_S);
            (rate, rate / fleet)
        } else {
            (0.0, 1.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: f64) -> Timestamp {
        Timestamp::from_secs_f64(s)
    }

    #[test]
    fn the_first_of_the_line_progresses_and_those_behind_it_do_not() {
        let mut line = PrefillLine::default();
        assert_eq!(line.left(at(9.0), 100.0), 0);
        line.push(at(10.0), (0, 0), 1000);
        line.push(at(10.5), (1, 0), 500);
        assert_eq!(line.left(at(10.0), 100.0), 1500);
        assert_eq!(line.left(at(12.0), 100.0), 1300);
        // It should long be done, and is not.
        assert_eq!(line.left(at(60.0), 100.0), 600);
        assert_eq!(line.first_token(at(14.0), (0, 0)), Some((1000, 4.0)));
        assert_eq!(line.left(at(15.0), 100.0), 400);
        assert_eq!(line.first_token(at(16.0), (1, 0)), Some((500, 2.0)));
        assert_eq!(line.left(at(17.0), 100.0), 0);
    }

    #[test]
    fn a_first_token_tells_that_those_before_it_are_done() {
        let mut line = PrefillLine::default();
        for (slot, work) in [(0, 1000), (1, 500), (2, 200)] {
            line.push(at(0.0), (slot, 7), work);
        }
        // Which of the two took how long is not known.
        assert_eq!(line.first_token(at(3.0), (1, 7)), None);
        assert_eq!(line.left(at(3.0), 100.0), 200);
        line.remove(at(4.0), (0, 7));
        assert_eq!(line.first_token(at(4.0), (0, 7)), None);
        // The last one has been at it since 3 s.
        assert_eq!(line.left(at(4.0), 100.0), 100);
    }

    #[test]
    fn who_ends_early_gives_its_turn_to_the_next() {
        let mut line = PrefillLine::default();
        for (slot, work) in [(0, 1000), (1, 500), (2, 200)] {
            line.push(at(0.0), (slot, 0), work);
        }
        line.remove(at(1.0), (1, 0));
        assert_eq!(line.left(at(1.0), 100.0), 1100);
        // The slot's next flight is another one.
        line.remove(at(1.0), (0, 1));
        assert_eq!(line.left(at(1.0), 100.0), 1100);
        line.remove(at(2.0), (0, 0));
        assert_eq!(line.left(at(2.0), 100.0), 200);
        assert_eq!(line.left(at(3.0), 100.0), 100);
    }

    #[test]
    fn the_rate_follows_long_prompts_only() {
        let mut rate = PrefillRate::default();
        assert_eq!(rate.get().to_bits(), 0);
        rate.learn(499, 1.0);
        rate.learn(1000, 0.0);
        assert_eq!(rate.get().to_bits(), 0);
        rate.learn(1000, 0.1);
        assert!((rate.get() - 10_000.0).abs() < 1e-9);
        // (0.99 * 1000 + 3000) / (0.99 * 0.1 + 0.1).
        rate.learn(3000, 0.1);
        assert!((rate.get() - 3990.0 / 0.199).abs() < 1e-9);
        for _ in 0..2000 {
            rate.learn(500, 0.1);
        }
        assert!((rate.get() - 5000.0).abs() < 1.0);
    }

    #[test]
    fn an_instance_is_as_fast_as_the_fleet_until_it_shows_otherwise() {
        let (mut fleet, mut slow) = (PrefillRate::default(), PrefillRate::default());
        assert_eq!(slow.against(fleet.get()), (0.0, 1.0));
        fleet.learn(10_000, 1.0);
        assert_eq!(slow.against(fleet.get()), (10_000.0, 1.0));
        // 10,000 in 5 s, and 5 s as the fleet: 60,000 in 10 s.
        slow.learn(10_000, 5.0);
        assert_eq!(slow.against(fleet.get()), (6_000.0, 0.6));
    }
}
