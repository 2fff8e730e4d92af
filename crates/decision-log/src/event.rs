//! What a router is told, as data.

use kvroute_policy::{BlockNames, PolicyConfig, Reason, RequestView};
use kvroute_router::{CacheNews, RouteReceipt, Routed, RouterConfig};
use kvroute_types::{BlockHash, InstanceId, LoadSnapshot, RequestId, TokenCount};
use serde::{Deserialize, Serialize};

/// Version of the log's form.
pub const FORMAT: u32 = 2;

/// One call to a router, or what the log says of itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A gateway started: from here on the events are those of a fresh router.
    Start(Box<Start>),
    /// [`kvroute_router::Router::add_instance`].
    InstanceAdded {
        /// Its id.
        id: InstanceId,
        /// Its name.
        name: String,
    },
    /// [`kvroute_router::Router::remove_instance`].
    InstanceRemoved {
        /// Its id.
        id: InstanceId,
    },
    /// [`kvroute_router::Router::set_eligible`].
    Eligible {
        /// The instance.
        id: InstanceId,
        /// Whether it may be chosen.
        eligible: bool,
    },
    /// [`kvroute_router::Router::set_policy`], with a policy built from the log's seed.
    Policy(PolicyConfig),
    /// [`kvroute_router::Router::observe_load`].
    Load {
        /// The instance.
        id: InstanceId,
        /// What it said.
        reading: LoadSnapshot,
    },
    /// [`kvroute_router::Router::observe_cache`].
    Cache {
        /// The instance.
        id: InstanceId,
        /// What it told.
        news: CacheNews,
    },
    /// [`kvroute_router::Router::set_believed`].
    Believed {
        /// The instance.
        id: InstanceId,
        /// Whether what it tells counts.
        believed: bool,
    },
    /// [`kvroute_router::Router::instance_restarted`].
    InstanceRestarted {
        /// The instance.
        id: InstanceId,
    },
    /// [`kvroute_router::Router::restore`].
    Restored {
        /// The snapshot.
        snapshot: Vec<u8>,
    },
    /// [`kvroute_router::Router::route_except`].
    Route(Box<Route>),
    /// [`kvroute_router::Router::first_token`].
    FirstToken {
        /// Whose.
        request: RequestId,
    },
    /// [`kvroute_router::Router::end`].
    End {
        /// Whose.
        request: RequestId,
    },
    /// Events are missing here: the writer could not keep up.
    Gap {
        /// How many.
        lost: u64,
    },
}

/// What a router was built from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// [`FORMAT`] of the log.
    pub format: u32,
    /// Version of kvroute that wrote it.
    pub version: String,
    /// Seed of router and policy.
    pub seed: u64,
    /// The policy.
    pub policy: PolicyConfig,
    /// The router's settings.
    pub router: RouterConfig,
}

/// A request to be routed, and what was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// What the router was told of it.
    pub request: LoggedRequest,
    /// Which try of the client's request this is, from 1.
    pub attempt: u32,
    /// Instances that failed it before.
    pub excluded: Vec<InstanceId>,
    /// Where it went; `None` if no instance could be chosen.
    pub decision: Option<Decision>,
    /// What the decision was made from, for people; not read back.
    pub receipt: Option<RouteReceipt>,
}

/// An owned [`RequestView`]. Every try has a number of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of RequestView")]
pub struct LoggedRequest {
    pub id: RequestId,
    pub session_key: Option<u64>,
    pub prefix_key: Option<u64>,
    pub prompt_blocks: Vec<BlockHash>,
    pub block_names: BlockNames,
    pub prompt_tokens: TokenCount,
    pub max_output_tokens: Option<TokenCount>,
    pub priority: i32,
}

impl From<&RequestView<'_>> for LoggedRequest {
    fn from(view: &RequestView<'_>) -> Self {
        let RequestView {
            id,
            session_key,
            prefix_key,
            prompt_blocks,
            block_names,
            prompt_tokens,
            max_output_tokens,
            priority,
        } = *view;
        let prompt_blocks = prompt_blocks.to_vec();
        Self {
            id,
            session_key,
            prefix_key,
            prompt_blocks,
            block_names,
            prompt_tokens,
            max_output_tokens,
            priority,
        }
    }
}

impl LoggedRequest {
    /// As the router is told of it.
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            id: self.id,
            session_key: self.session_key,
            prefix_key: self.prefix_key,
            prompt_blocks: &self.prompt_blocks,
            block_names: self.block_names,
            prompt_tokens: self.prompt_tokens,
            max_output_tokens: self.max_output_tokens,
            priority: self.priority,
        }
    }
}

/// Where a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The instance.
    pub instance: InstanceId,
    /// Why.
    pub reason: Reason,
    /// Prompt tokens believed cached there; `None` without a cache directory.
    pub predicted_cached_tokens: Option<TokenCount>,
}

impl From<&Routed> for Decision {
    fn from(routed: &Routed) -> Self {
        let Routed {
            instance,
            reason,
            predicted_cached_tokens,
            told_cached_tokens: _,
            ticket: _,
            receipt: _,
        } = *routed;
        Self { instance, reason, predicted_cached_tokens }
    }
}
