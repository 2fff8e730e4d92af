//! Why requests' blocks do not come in events: wrong names, or lost news.

use crate::Cause;
use crate::window::{Latest, Tally};

/// Kinds of unexpected roots: first blocks in events that no recent request of ours names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootKind {
    /// Tokens only.
    Keyless,
    /// With a salt or other extra keys.
    Keyed,
    /// Of an adapter.
    Lora,
    /// With a name that could not be computed again.
    Unsure,
}

/// How many unexpected roots of each kind there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roots([u64; 4]);

impl Roots {
    pub(crate) fn add(&mut self, kind: RootKind) {
        self.0[kind as usize] += 1;
    }

    fn has(&self, kind: RootKind) -> bool {
        self.0[kind as usize] > 0
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|kind| self.0[kind] - earlier.0[kind]))
    }

    /// The kinds that came after `earlier` and never before.
    fn new_kinds(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|kind| if earlier.0[kind] == 0 { self.0[kind] } else { 0 }))
    }

    /// What these roots speak for, if they were the blocks of a request with or without extra keys known to us.
    pub(crate) fn suspects(&self, has_extra_keys: bool) -> Suspects {
        let (as_ours, unlike_ours) = if has_extra_keys {
            (RootKind::Keyed, RootKind::Keyless)
        } else {
            (RootKind::Keyless, RootKind::Keyed)
        };
        Suspects([
            self.has(RootKind::Lora),
            self.has(unlike_ours),
            self.has(RootKind::Unsure),
            self.has(as_ours),
        ])
    }
}

/// Which of [`Suspects::CAUSES`] are suspected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Suspects(pub(crate) [bool; Self::COUNT]);

impl Suspects {
    pub(crate) const COUNT: usize = 4;
    /// The rarer in traffic that is not ours come first: they say more.
    const CAUSES: [Cause; Self::COUNT] =
        [Cause::Lora, Cause::Salt, Cause::HashSeed, Cause::Tokenizer];
}

/// One in so many may be confirmed while the names are wrong: prompts that end within what is named alike.
const CONFIRMED_OF_WRONG_NAMES: u64 = 8;

/// Chance below which a suspect did not just happen to be there.
const COINCIDENCE_MAX: f64 = 1e-6;

/// Why requests are unconfirmed, of which there is at least one; `None` if it is too early to say.
///
/// `roots` are all unexpected ones so far, `before` those when the latest confirmed request was counted.
pub(crate) fn explain_unconfirmed(
    tally: &Tally,
    latest: Latest,
    roots: &Roots,
    before: &Roots,
) -> Option<Cause> {
    let due = tally.confirmed + tally.unconfirmed;
    let (unconfirmed, since) = (latest.unconfirmed(), latest.since_unconfirmed());
    // One of the latest may be such a prompt too.
    if unconfirmed + 1 >= Latest::COUNT || tally.confirmed * CONFIRMED_OF_WRONG_NAMES <= due {
        Some(explain_all_unconfirmed(tally, roots, before))
    } else if since < Latest::COUNT && unconfirmed * 2 > since {
        // It has just begun, and may become all.
        None
    } else {
        Some(explain_some_unconfirmed(tally))
    }
}

/// No request of ours shows in events any more. If events come at all they are about blocks of ours under other names.
fn explain_all_unconfirmed(tally: &Tally, roots: &Roots, before: &Roots) -> Cause {
    if tally.unconfirmed_with_events * 2 < tally.unconfirmed {
        return Cause::LostEvents;
    }
    // Roots of a kind that did not come before are ours: others would have had them all the time. Prompts that begin
    // alike store their root once, so one is enough.
    let have_extra_keys = tally.unconfirmed_with_keys * 2 > tally.unconfirmed;
    let Suspects(suspects) = roots.new_kinds(before).suspects(have_extra_keys);
    let new = suspects.into_iter().zip(Suspects::CAUSES).find(|(is_suspect, _)| *is_suspect);
    if let Some((_, cause)) = new {
        return cause;
    }
    let votes = tally.suspected_unconfirmed;
    let most = votes.into_iter().max().filter(|most| *most > 0);
    let first = votes.into_iter().zip(Suspects::CAUSES).find(|(count, _)| Some(*count) == most);
    first.map_or(Cause::Tokenizer, |(_, cause)| cause)
}

/// Some show and some do not. Roots of other clients come at any time; they are to blame only if they came with the
/// unconfirmed requests and not with the others.
///
/// With a suspect seen by the share `q` of the confirmed and by `k` of the unconfirmed, `q^k` is the chance of the
/// latter if it has nothing to do with them.
fn explain_some_unconfirmed(tally: &Tally) -> Cause {
    for (suspect, cause) in Suspects::CAUSES.into_iter().enumerate() {
        let with = tally.suspected_unconfirmed[suspect];
        // Laplace's rule: never having seen it is no certainty that it never is.
        let by_chance =
            (tally.suspected_confirmed[suspect] + 1) as f64 / (tally.confirmed + 2) as f64;
        let chance = by_chance.powf(with as f64);
        if with * 5 >= tally.unconfirmed * 4 && chance < COINCIDENCE_MAX {
            return cause;
        }
    }
    Cause::LostEvents
}
