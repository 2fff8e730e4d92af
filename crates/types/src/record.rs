//! One finished request, as the simulator and the load driver both write it.

use serde::{Deserialize, Serialize};

use crate::{InstanceId, RequestId, SessionId, Timestamp, TokenCount};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All output tokens arrived.
    Completed,
    /// No instance could take it, or it ended in an error.
    Failed,
}

/// One request of a run. Times are virtual (simulator) or since the run began (load driver).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// Number of the request in its workload.
    pub id: RequestId,
    /// Session it belongs to.
    pub session: SessionId,
    /// Turn within the session, from 0.
    pub turn: u32,
    /// Instance that served it; `None` if none could be chosen.
    pub instance: Option<InstanceId>,
    /// Why the policy chose that instance; one of the policy's published reason names.
    pub reason: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// Intended arrival: when the client meant to send it (open loop, no coordinated omission).
    pub arrival: Timestamp,
    /// When the engine first scheduled it; `None` if it never ran.
    pub scheduled: Option<Timestamp>,
    /// When the first output token reached the client; `None` if none did.
    pub first_token: Option<Timestamp>,
    /// When the last output token reached the client, or the failure was known.
    pub end: Timestamp,
    /// Prompt length.
    pub prompt_tokens: TokenCount,
    /// Prompt tokens found in the prefix cache at first admission (R28); `None` if never admitted.
    pub cached_tokens: Option<TokenCount>,
    /// What the router believed would be cached on the chosen instance; `None` without a cache directory.
    pub predicted_cached_tokens: Option<TokenCount>,
    /// Output tokens produced.
    pub output_tokens: TokenCount,
    /// Times it was preempted.
    pub preemptions: u32,
}
