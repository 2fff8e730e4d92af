//! Whether the exact index of one instance's prefix cache may be believed, and if not, why.
//!
//! An index fed by KV events predicts how much of a prompt an instance has cached. It is worth nothing, and silently, if
//! its user names blocks otherwise than the engine (block size, hash algorithm, seed, salt, adapter, tokenizer), or if
//! events are lost. An [`Audit`] is told what is asked of one instance, what the answers say and what the events say,
//! and gives a [`Verdict`]. In brackets, rules of `docs/engine-model.md`.
//!
//! # What must be true
//! Events come in order and name every block that enters or leaves the cache (R68). So, with the right names and all
//! events, each of these holds for each request, without exception, whatever is evicted and however many run at once:
//!
//! * **Confirmed.** A request that ended well and computed its last full prompt block (the server reports fewer cached
//!   tokens than the full blocks have) stored it (R21): an event names that block after the routing, its own or that of
//!   another request with the same prefix. It may come up to [`confirm_s`](AuditConfig::confirm_s) after the end.
//! * **Told.** If a request finds more cached than was predicted, then an event after the routing names the first block
//!   beyond the prediction: it was stored, or the news of it came, too late. (This is what a burst of equal prompts on a
//!   cold cache looks like.)
//! * **Kept.** If it finds less, then an event after the routing removes the last predicted block, which of a chain is
//!   the first to go (R9). Only for callers that tell of removals ([`Audit::evicted`]).
//! * **Known.** No event removes a block that the index does not hold.
//!
//! What breaks one of these is *missing* news. A few of them, above [`missing_max`](AuditConfig::missing_max), are a
//! fault. After a loss that is known, or when the index had no room, Told and Known do not hold; then only the others
//! count, and the index is judged by its recall.
//!
//! # How causes are told apart
//!
//! | what is seen | cause |
//! |---|---|
//! | an event's block size is not ours | [`Cause::BlockSize`], at once |
//! | a first block with tokens only, whose hash is what another algorithm makes of its tokens | [`Cause::HashAlgo`], at once |
//! | the same, and no algorithm does | [`Cause::HashSeed`], at once |
//! | the server counts other prompt tokens | [`Cause::Tokenizer`] |
//! | (nearly) no request confirmed, and no events | [`Cause::LostEvents`] |
//! | (nearly) none confirmed, events, and unexpected roots of a kind not seen before: of adapters; with extra keys where we have none, or without where we have some; with hashes that cannot be computed again | [`Cause::Lora`], [`Cause::Salt`], [`Cause::HashSeed`] |
//! | the same, and no such roots | [`Cause::Tokenizer`] |
//! | some unconfirmed, and unexpected roots came with these and not with the confirmed | as the roots say |
//! | some news missing, and nothing else | [`Cause::LostEvents`] |
//! | precision or recall low | [`Cause::Tokenizer`] with some wrong lengths, [`Cause::LostEvents`] with some news missing, else [`Cause::Unexplained`] |
//!
//! An *unexpected root* is a first block in an event that no recent request told to the audit names. Others may talk to
//! the instance, so one proves nothing; a kind of root that others send too is told from ours by when it comes.
//!
//! # What it cannot tell
//! * A tokenizer that differs in a few tokens and not in their number confirms some requests and others not. It is
//!   doubted, but the cause is at first [`Cause::LostEvents`] if enough prompts are untouched.
//! * Over the tests' model of an instance, of 100 seeds, one fault in some thousands is called by another name, or a loss of
//!   one batch in twenty shows no sign within 200 requests; a persistent loss of that size is now and then believed again.
//! * Events of another instance look like [`Cause::Tokenizer`].
//! * Other clients that begin to use salts or adapters when our names go wrong take the blame.
//! * Requests that do not read the cache (prompt log probabilities, R25) break promises; better not to tell of them.
//!
//! # The verdict
//! Nothing is judged before [`requests_min`](AuditConfig::requests_min) audited requests but the certain causes. A doubt
//! ends after [`recover_requests`](AuditConfig::recover_requests) good requests in a row, twice as many after each
//! recovery; a doubt of block size, algorithm or seed ends with the first block whose hash is as we compute it. The
//! window of the figures begins anew with each change to and from a doubt. The caller goes on telling everything while
//! it does not use the index.
//!
//! ```
//! use kvroute_index_audit::{Audit, AuditConfig, Cause, Naming, Verdict};
//! use kvroute_types::{BlockSize, Timestamp};
//! use kvroute_vllm_wire::{BlockStored, HashAlgo};
//!
//! let naming = Naming {
//!     algo: HashAlgo::Sha256,
//!     block_size: BlockSize::default(),
//!     pythonhashseed: None,
//! };
//! let mut audit = Audit::new(AuditConfig::default(), &naming);
//! let now = Timestamp::ZERO;
//! audit.stored(now, &BlockStored { block_size: 32, ..BlockStored::default() });
//! let cause = Cause::BlockSize { ours: 16, theirs: 32 };
//! assert_eq!(audit.verdict(now), Verdict::Doubted(cause));
//! assert!(cause.to_string().ends_with("set the block size to 32"));
//! ```
//!
//! # Cost
//! Memory is bounded: 4,096 requests under way, 1,024 first blocks, the window. A call takes constant time, an event one
//! look-up per block, and a root event one SHA-256 of a block (two if it is not ours); settling takes constant time for
//! each request that ended.
//!
//! The crate is *not* an index and does not route: predictions come from its caller. It is pure: time comes in as a
//! [`Timestamp`](kvroute_types::Timestamp), and nothing here draws random numbers, reads the environment or iterates
//! over a hash map.

mod audit;
mod cause;
mod config;
mod explain;
mod root;
mod scrape;
mod watch;
mod window;

pub use audit::{Audit, Expectation, Figures, Reported};
pub use cause::{Cause, Verdict};
pub use config::{AuditConfig, InvalidAudit, Naming};
