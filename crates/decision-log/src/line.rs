//! One line as JSON.

use kvroute_policy::{BlockNames, PolicyConfig, Reason};
use kvroute_router::CacheNews;
use kvroute_types::{InstanceId, RequestId, Timestamp, TokenCount};
use serde::{Deserialize, Serialize};

use crate::event::Start;
use crate::prompts::{blocks, digits};
use crate::receipt::{Receipt, ReceiptCandidate};

#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Line {
    Start {
        at_ns: Timestamp,
        #[serde(flatten)]
        start: Box<Start>,
    },
    InstanceAdded {
        at_ns: Timestamp,
        instance_id: InstanceId,
        instance: String,
    },
    InstanceRemoved {
        at_ns: Timestamp,
        instance_id: InstanceId,
    },
    Eligible {
        at_ns: Timestamp,
        instance_id: InstanceId,
        eligible: bool,
    },
    Policy {
        at_ns: Timestamp,
        policy: PolicyConfig,
    },
    Load {
        at_ns: Timestamp,
        instance_id: InstanceId,
        waiting: u32,
        running: u32,
        kv_cache_usage: f64,
        as_of_ns: Timestamp,
    },
    Cache {
        at_ns: Timestamp,
        instance_id: InstanceId,
        #[serde(flatten)]
        news: NewsLine,
    },
    Believed {
        at_ns: Timestamp,
        instance_id: InstanceId,
        believed: bool,
    },
    InstanceRestarted {
        at_ns: Timestamp,
        instance_id: InstanceId,
    },
    Restored {
        at_ns: Timestamp,
        snapshot: String,
    },
    Route(Box<RouteLine>),
    Refused(Box<RouteLine>),
    FirstToken {
        at_ns: Timestamp,
        request: RequestId,
    },
    End {
        at_ns: Timestamp,
        request: RequestId,
    },
    Gap {
        lost: u64,
    },
}

/// What an instance told of its cache; blocks as in `prompts`.
#[derive(Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "kebab-case")]
pub(crate) enum NewsLine {
    Stored { after: Option<String>, blocks: String },
    Removed { blocks: String },
    Cleared,
    Lost,
}

impl From<&CacheNews> for NewsLine {
    fn from(news: &CacheNews) -> Self {
        match news {
            CacheNews::Stored { parent, blocks } => {
                Self::Stored { after: parent.map(|it| digits(&[it])), blocks: digits(blocks) }
            }
            CacheNews::Removed(blocks) => Self::Removed { blocks: digits(blocks) },
            CacheNews::Cleared => Self::Cleared,
            CacheNews::Lost => Self::Lost,
        }
    }
}

impl NewsLine {
    /// `None` if what stands for blocks does not name any.
    pub(crate) fn news(&self) -> Option<CacheNews> {
        Some(match self {
            Self::Stored { after, blocks: stored } => {
                let parent = match after {
                    Some(after) => Some(*blocks(after)?.first()?),
                    None => None,
                };
                CacheNews::Stored { parent, blocks: blocks(stored)?.into() }
            }
            Self::Removed { blocks: removed } => CacheNews::Removed(blocks(removed)?.into()),
            Self::Cleared => CacheNews::Cleared,
            Self::Lost => CacheNews::Lost,
        })
    }
}

/// A request and, if there was one, the decision. The fields of [`Receipt`] keep their names.
#[derive(Serialize, Deserialize)]
pub(crate) struct RouteLine {
    pub(crate) at_ns: Timestamp,
    pub(crate) request: RequestId,
    pub(crate) attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) instance_id: Option<InstanceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Reason>,
    pub(crate) predicted_cached_tokens: Option<TokenCount>,
    pub(crate) session_key: Option<u64>,
    pub(crate) prefix_key: Option<u64>,
    pub(crate) prompt_tokens: TokenCount,
    pub(crate) max_output_tokens: Option<TokenCount>,
    pub(crate) priority: i32,
    pub(crate) excluded: Vec<InstanceId>,
    pub(crate) prompt_blocks: usize,
    pub(crate) blocks_after: Option<String>,
    pub(crate) blocks: String,
    pub(crate) block_names: BlockNames,
    #[serde(flatten, skip_deserializing)]
    pub(crate) told: Option<Told>,
}

/// What of a receipt is for people alone.
#[derive(Default, Serialize)]
pub(crate) struct Told {
    at_s: f64,
    policy: &'static str,
    instance: String,
    index_age_s: Option<f64>,
    candidates: Vec<ReceiptCandidate>,
}

impl From<Receipt> for Told {
    fn from(receipt: Receipt) -> Self {
        // Taken apart to its last field: what is not here stands in the line itself.
        let Receipt {
            at_s,
            policy,
            instance,
            index_age_s,
            candidates,
            request: _,
            reason: _,
            predicted_cached_tokens: _,
            prompt_tokens: _,
            prompt_blocks: _,
            session_key: _,
            prefix_key: _,
            attempt: _,
        } = receipt;
        Self { at_s, policy, instance, index_age_s, candidates }
    }
}
