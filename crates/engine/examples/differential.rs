//! Holds the engine model to a recording of a real vLLM:
//!
//! ```text
//! cargo run --release -p kvroute-engine --example differential -- RECORDING...
//! ```
//!
//! Prints what was compared, and up to ten differences. Exit status 0 if there are none, 1 if there are, 2 if a recording
//! cannot be read.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::path::PathBuf;
use std::process::ExitCode;

#[path = "../tests/it/differential.rs"]
mod differential;

use differential::{Recording, compare};

const MOST_SHOWN: usize = 10;

fn main() -> ExitCode {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if files.is_empty() {
        eprintln!("usage: differential RECORDING...");
        return ExitCode::from(2);
    }
    let mut all_alike = true;
    for file in files {
        let recording = Recording::open(&file);
        let compared = recording.and_then(|recording| {
            let compared = compare(&recording, |_| {})?;
            Ok((recording.settings, compared))
        });
        match compared {
            Ok((settings, compared)) => {
                println!("{}: {settings}\n{compared}", file.display());
                for difference in compared.differences.iter().take(MOST_SHOWN) {
                    println!("  {difference}");
                }
                all_alike &= compared.differences.is_empty();
            }
            Err(error) => {
                eprintln!("{}: {error}", file.display());
                return ExitCode::from(2);
            }
        }
    }
    if all_alike { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
