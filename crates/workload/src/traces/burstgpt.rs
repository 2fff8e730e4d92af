//! `BurstGPT`: arrivals and lengths, in later releases a session id; no identity of content.
//!
//! Requests of one session share a session key and nothing else: whether a conversation's prompts
//! repeat its history is not recorded. Releases with failures hold rows with 0 response tokens,
//! which are errors here.

use std::io::BufRead;

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use super::input::{CsvRows, TraceClock, bad_value, check_lengths};
use super::{TraceError, TraceFormat, block_ids};
use crate::workload::{Draft, WorkloadBuilder, stable_hash};
use crate::{Arrival, Workload};

pub(super) fn read(reader: impl BufRead) -> Result<Workload, TraceError> {
    let mut rows = CsvRows::new(reader, TraceFormat::BurstGpt)?;
    let time = rows.column("Timestamp")?;
    let prompt = rows.column("Request tokens")?;
    let output = rows.column("Response tokens")?;
    let session_id = rows.find_column("Session ID");
    let mut builder = WorkloadBuilder::default();
    let mut clock = TraceClock::default();
    let mut sessions = Sessions::default();
    while let Some(row) = rows.next()? {
        let prompt_tokens = row.count(prompt, "Request tokens")?;
        let output_tokens = row.count(output, "Response tokens")?;
        check_lengths(
            row.line,
            ("Request tokens", prompt_tokens),
            ("Response tokens", output_tokens),
        )?;
        let at_s = row
            .text(time)
            .parse()
            .map_err(|_| bad_value(row.line, "Timestamp", row.text(time), "a number of seconds"))?;
        let arrival = Arrival::At(clock.arrival_in(row.line, "Timestamp", at_s, 1.0)?);
        let (session, session_key) = sessions.assign(session_id.map_or("", |c| row.text(c)));
        let private = block_ids::private(builder.drafts.len(), prompt_tokens + output_tokens);
        let content = builder.content([private]);
        builder.push(Draft {
            session,
            arrival,
            prompt_tokens,
            output_tokens,
            content,
            session_key,
            prefix_key: private.id.0,
        });
    }
    Ok(builder.finish(TraceFormat::BurstGpt.name()))
}

#[derive(Default)]
struct Sessions {
    by_name: HashMap<String, u32, FxBuildHasher>,
    count: u32,
}

impl Sessions {
    /// The number and key of a named session; a new one if there is no name.
    fn assign(&mut self, name: &str) -> (u32, u64) {
        if name.is_empty() {
            self.count += 1;
            return (self.count - 1, block_ids::session_key(self.count - 1));
        }
        let count = &mut self.count;
        let session = *self.by_name.entry_ref(name).or_insert_with(|| {
            *count += 1;
            *count - 1
        });
        (session, stable_hash(name.as_bytes()))
    }
}
