//! Instances of a simulated vLLM behind vLLM's HTTP API, in real time.
//!
//! Each instance is a [`kvroute_engine::Engine`] paced by the clock: requests are tokenised, queued, prefilled, cached
//! and decoded by vLLM's rules and at the speed of a [`kvroute_profile::LatencyProfile`], with no model and no GPU.
//! What comes out has vLLM 0.32.0's form: status codes, headers, keys and their order, stream events, error texts and
//! the metrics page. `R…` in the docs are the numbered rules of `docs/engine-model.md`.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use kvroute_mock_server::{MockCluster, MockConfig};
//! use kvroute_profile::LatencyProfile;
//!
//! let profile = LatencyProfile::builtin("rtx4090-llama3.1-8b")?;
//! let cluster = MockCluster::start(MockConfig { instances: 4, ..MockConfig::new(profile) }).await?;
//! println!("{}", cluster.instances()[0].url());
//! cluster.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Endpoints
//! vLLM's: `POST /v1/chat/completions`, `POST /v1/completions`, `GET /v1/models`, `POST /tokenize`, `POST /detokenize`,
//! `GET /metrics`, `GET /health`, `GET|POST /ping`, `GET /version`, `GET /load` (always counting, as with
//! `--enable-server-load-tracking`), `POST /reset_prefix_cache`. Every other path is a 404.
//!
//! The mock's own, under `/mock/`: `GET /mock/faults`, `POST /mock/faults` (a [`Faults`] in JSON replaces what is
//! set), `GET /mock/state`, `POST /mock/fail-engine`.
//!
//! # What it is *not*
//! * A model: answers are made-up words drawn from seed and prompt, and sampling parameters do not change them. An answer
//!   sent back in the next turn has the ids that were generated, so conversations hit the cache as they would.
//! * A real vocabulary: token counts are near those of real tokenisers, ids are its own.
//! * All of vLLM's API: tools, structured output, images, `LoRA`, `/v1/responses`, `/v1/messages` and embeddings are
//!   left out. Fields it does not know are ignored, as vLLM does; `prompt_logprobs`, log probabilities of
//!   completions and message parts other than text are refused with a 400 that says so; those of chat are made up.
//! * Its HTTP server: of the headers only those of the API are alike (`content-type`, `allow`), not `server` or `vary`;
//!   the metrics page has vLLM's own series and not those of its HTTP framework and process.
//! * Ever behind: vLLM merges tokens of a stream into one event when the client lags; here each token is an event.
//! * Exact to the microsecond: timers fire up to a millisecond late. The model's own stamps do not drift.

mod answer;
mod api_error;
mod api_fields;
mod block_keys;
mod body;
mod call;
mod chat_template;
mod clock;
mod cluster;
mod config;
mod device;
mod faults;
mod instance;
mod kv_events;
mod metrics;
mod reply;
mod server;
mod tokenizer;
mod wire;
mod zero_delay;

pub use cluster::{MockCluster, MockInstance};
pub use config::{MockConfig, StartError, ZeroDelay};
pub use faults::{Faults, InvalidFaults, MetricsFault};
pub use kv_events::{KvEventsAddress, KvEventsConfig};
