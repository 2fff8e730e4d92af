//! The words every kvroute crate shares: ids, units, time, block keys and hashes, load snapshots, request records.
//!
//! Data only. No policy, no clock, no input or output; the only dependency is serde.

mod block;
mod id;
mod load;
mod record;
mod time;
mod unit;

pub use block::{BlockChain, BlockHash, BlockKey, KeyRun, mix64};
pub use id::{InstanceId, RequestId, SessionId};
pub use load::{LoadSample, LoadSnapshot};
pub use record::{Outcome, RequestRecord};
pub use time::Timestamp;
pub use unit::{BlockCount, BlockSize, TokenCount};
