//! What holds for every policy, on random tables and random lives of a table.

mod common;

mod laws;
mod least_loaded;
mod limits;
