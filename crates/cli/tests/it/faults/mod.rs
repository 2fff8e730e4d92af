//! `kvroute serve` before `kvroute mock` processes that die, freeze, hang and misbehave, one process an instance.
//!
//! Counts and states are asserted, with generous deadlines; `scripts/fault_times.py` measures how long things take.

mod input;
mod misbehaviour;
mod outages;
mod shutdown;
mod silence;

use crate::client::Prompt;
use crate::process::Mock;

/// About 4 ms a token.
const QUICK: [&str; 2] = ["--time-scale", "5"];

/// Requests go to every instance in turn, so that each is found out, and none is spared because of its load.
const IN_TURN: &str = "[policy]\nkind = \"round-robin\"\n";

fn mocks<const N: usize>() -> [Mock; N] {
    std::array::from_fn(|_| Mock::start(&QUICK))
}

/// Half of the answers come as streams.
fn mixed(number: u64) -> Prompt {
    Prompt { number, words: 20, max_tokens: 10, stream: number.is_multiple_of(2) }
}

fn whole(number: u64) -> Prompt {
    Prompt { stream: false, ..mixed(number) }
}

fn streamed(number: u64) -> Prompt {
    Prompt { stream: true, ..mixed(number) }
}
