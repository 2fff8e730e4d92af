//! Follows what vLLM instances publish of their prefix caches: KV events over ZMQ (rules R67-R73 of
//! `docs/engine-model.md`).
//!
//! A [`Subscription`] connects to one publisher, tells its [`Fact`]s in order, and says where they stop being
//! trustworthy. What it hides: batches that got lost on the way are asked for again, the last ones of a burst after a
//! moment of quiet; a restart of the server, which nothing announces, shows in the numbers; a cut connection is made
//! again, ever more slowly.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use kvroute_kv_events::{Fact, SourceConfig, Subscription};
//!
//! let mut source = SourceConfig::new("tcp://10.0.0.5:5557".parse()?);
//! source.replay = Some("tcp://10.0.0.5:5558".parse()?);
//! let mut subscription = Subscription::connect(source);
//! while let Some(news) = subscription.recv().await {
//!     for fact in news.facts {
//!         match fact {
//!             Fact::Stored(stored) => println!("{:?}", stored.hashes().collect::<Vec<u64>>()),
//!             Fact::Removed(removed) => println!("one copy less of {:?}", removed.block_hashes),
//!             Fact::Cleared(_) | Fact::Lost(_) => println!("forget all of it"),
//!             Fact::Synced => println!("nothing is missing from here on"),
//!             Fact::Connected | Fact::Disconnected => {}
//!         }
//!     }
//!     // What was made of all facts so far and `news.position` are a snapshot, for `Subscription::resume`.
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What may be missing, and for how long
//! A batch dropped on the way is noticed at the next one; the last batches of a burst, with none behind them, at a *quiet
//! check*: when no message came for [`SourceConfig::quiet_check`], a replay is asked for from the batch seen last on. That
//! batch must come back byte for byte, which shows that the connection still leads to the one who answers; else it is
//! made anew. What follows it is taken in, and [`Fact::Synced`] says that all was told. A check that finds nothing
//! doubles the quiet before the next, up to 30 s; a replay that fails is not tried again within
//! [`SourceConfig::replay_pause`]. So with a replay endpoint that answers, a reader is behind by at most the quiet before
//! the next check.
//!
//! # Bounds
//! A message has at most 16 MiB, and memory grows only with bytes that came; 64 batches wait for a slow reader, then
//! the connection is not read any further and the publisher drops what does not fit its own queue, which a replay
//! brings back. Nothing a peer sends makes it panic.
//!
//! # What it is *not*
//! * An index: copies of a hash are for the reader to count, and hashes to compare.
//! * A publisher, and no general ZMQ library: it connects, as SUB and as DEALER, over TCP and Unix sockets.
//! * A watch over the server's life: an instance that is dead but whose connection stands is found by TCP's
//!   keep-alive at best.
//! * Aware of lost batches at the end of a burst without a replay endpoint: they show with the next batch.

mod counters;
mod endpoint;
mod fact;
mod sources;
mod subscription;
mod tracker;
mod zmtp;

pub use counters::{Counters, ErrorKind};
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use fact::{Cleared, Fact, News};
pub use sources::{EventSource, InvalidSources, read_sources};
pub use subscription::{SourceConfig, Subscription};
pub use tracker::{Loss, Position};
