//! Identifiers.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// The id as an index into a table laid out in id order.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// One serving instance: what a request is routed to. Unique for the life of a router; never reused.
    InstanceId
);
id!(
    /// One request, numbered in the order of the workload (simulator) or of arrival (gateway).
    RequestId
);
id!(
    /// One session (conversation): requests that share a growing prefix.
    SessionId
);
