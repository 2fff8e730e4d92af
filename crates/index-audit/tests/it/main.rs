//! Audits of a small model of an instance, with and without faults.

mod faultless;
mod faults;
mod instance;
mod recorded;
mod traffic;
