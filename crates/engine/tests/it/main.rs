//! The engine model against a real vLLM.

#![expect(
    clippy::unwrap_used,
    reason = "allow-unwrap-in-tests does not reach helpers of integration tests"
)]

mod differential;
mod real_vllm;
