//! Routing policies: each a choice over candidates, nothing else.
//!
//! A policy sees values ([`RequestView`], [`Candidate`]) and returns a [`Decision`]. It is *not* told of
//! sockets, clocks or engines, it keeps no cache directory of its own (the router's fills
//! [`Candidate::matched_blocks`]), and it cannot tell the gateway from the simulator. One rule, [`Oracle`], needs what
//! only the simulator knows, and no gateway takes it ([`PolicyConfig::is_simulation_only`]).
//!
//! A policy is named and tuned by a [`PolicyConfig`], from TOML or from the command line:
//!
//! ```
//! use kvroute_policy::{BlockNames, Candidate, PolicyConfig, RequestView, Scores};
//! use kvroute_types::{InstanceId, RequestId, Timestamp, TokenCount};
//!
//! let config: PolicyConfig = "load-cache:alpha=0.7,beta=0.3".parse()?;
//! let mut policy = config.build(42)?;
//! let request = RequestView {
//!     id: RequestId(0),
//!     session_key: None,
//!     prefix_key: None,
//!     prompt_blocks: &[],
//!     block_names: BlockNames::Engine,
//!     prompt_tokens: TokenCount(5),
//!     max_output_tokens: None,
//!     priority: 0,
//! };
//! let mut candidates = [0, 1].map(InstanceId).map(Candidate::new);
//! candidates[0].in_flight = 3;
//! candidates[0].unseen_in_flight = 3;
//! let decision = policy.choose(Timestamp::ZERO, &request, &candidates, &mut Scores::new(false));
//! assert_eq!(decision.map(|d| (d.position, d.reason.name())), Some((1, "load-score")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod api;
mod capacity_misses;
mod choice;
mod config;
mod home;
mod jsq;
mod least_loaded;
mod load_cache;
mod p2c;
mod per_instance;
mod prefix_affinity;
mod round_robin;
mod session_affinity;
mod sessions;

pub use api::{
    BlockNames, Candidate, Decision, Event, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
    prefill_work,
};
pub use config::{InvalidPolicy, Parameter, ParsePolicyError, PolicyDescription, UnknownPolicy};
pub use home::HashRule;
pub use jsq::{Jsq, JsqConfig};
pub use least_loaded::LeastLoaded;
pub use load_cache::{Affinity, LoadCache, LoadCacheConfig};
pub use p2c::{P2c, P2cConfig};
pub use prefix_affinity::{PrefixAffinity, PrefixAffinityConfig};
pub use round_robin::RoundRobin;
pub use session_affinity::{SessionAffinity, SessionAffinityConfig};

// All rules. `docs/add-a-policy.md` says how to add one: a file in `arena` and a line here.
config::rules! {
    core {
        Jsq(JsqConfig),
        P2c(P2cConfig),
        SessionAffinity(SessionAffinityConfig),
        PrefixAffinity(PrefixAffinityConfig),
        LoadCache(LoadCacheConfig),
    }
    arena {
        adaptive: Adaptive(AdaptiveConfig),
        threshold: Threshold(ThresholdConfig),
        spill_gate: SpillGate(SpillGateConfig),
        dynamo: Dynamo(DynamoConfig),
        llm_d_blend: LlmDBlend(LlmDBlendConfig),
        llm_d_sticky: LlmDSticky(LlmDStickyConfig),
        lmetric: Lmetric(LmetricConfig),
        dualmap: Dualmap(DualmapConfig),
        chwbl: Chwbl(ChwblConfig),
        preble: Preble(PrebleConfig),
        mooncake: Mooncake(MooncakeConfig),
        aibrix: Aibrix(AibrixConfig),
        ray: Ray(RayConfig),
        sticky_least_loaded: StickyLeastLoaded(StickyLeastLoadedConfig),
        oracle: Oracle(OracleConfig),
    }
}

#[cfg(test)]
mod fixtures;
