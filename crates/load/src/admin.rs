//! What a kvroute gateway says of itself on its admin API.

use http::StatusCode;
use kvroute_policy::PolicyConfig;

use crate::config::Target;
use crate::http::get;

/// Why the gateway's policy is not known.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No answer.
    #[error(
        "the admin API does not answer: {detail}; give its address, which `kvroute serve` prints at its start"
    )]
    NoAnswer {
        /// What happened.
        detail: String,
    },
    /// Another answer than a policy.
    #[error("the answer to /policy is {status}: is this the admin API of a kvroute gateway?")]
    Status {
        /// Its status.
        status: StatusCode,
    },
    /// A policy that this version does not know.
    #[error("the policy cannot be read; use the version of kvroute that the gateway has")]
    Unknown(#[source] serde_json::Error),
}

/// The policy that the gateway with this admin API uses now.
///
/// # Errors
/// [`AdminError`] names the remedy.
pub async fn gateway_policy(admin: &Target) -> Result<PolicyConfig, AdminError> {
    let answer = get(admin, "/policy").await;
    let (status, body) = answer.map_err(|detail| AdminError::NoAnswer { detail })?;
    if !status.is_success() {
        return Err(AdminError::Status { status });
    }
    serde_json::from_slice(&body).map_err(AdminError::Unknown)
}
