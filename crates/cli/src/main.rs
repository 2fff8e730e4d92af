//! `kvroute`: route LLM requests to the vLLM instance that holds their prefix, and prove that it helps.
//!
//! Each subcommand parses its arguments into checked values, calls the libraries, and prints. Results go to standard
//! output, progress and errors to standard error. Exit status: 0 ok, 1 the run failed, 2 bad usage or input.

#![expect(clippy::print_stdout, reason = "printing results is what this crate is for")]

mod calibrate;
mod cluster_args;
mod demo;
mod embedded;
mod experiment;
mod failure;
mod inspect;
mod live;
mod load;
mod log;
mod mock;
mod output;
mod provenance;
mod replay;
mod serve;
mod simulate;
mod trace;
mod validate;
mod values;
mod workload_args;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A gateway that routes LLM requests to the vLLM instance that holds their prefix, and the laboratory that proves it.
#[derive(Debug, Parser)]
#[command(name = "kvroute", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Six policies on embedded instances, live over HTTP and simulated, in under a minute.
    Demo(demo::DemoArgs),
    /// Run the gateway in front of vLLM instances.
    Serve(serve::ServeArgs),
    /// Run simulated vLLM instances behind vLLM's HTTP API, in real time.
    Mock(mock::MockArgs),
    /// Drive an OpenAI-compatible endpoint with a workload and record every request.
    Load(Box<load::LoadArgs>),
    /// Run a workload through routing policies over simulated vLLM instances, in virtual time.
    Simulate(Box<simulate::SimulateArgs>),
    /// Run experiments: grids of policies, workloads, loads and conditions, with statistics and a report.
    Experiment {
        #[command(subcommand)]
        command: experiment::ExperimentCommand,
    },
    /// Make a gateway's decisions again from its decision log, and see what other policies would have decided.
    Replay(replay::ReplayArgs),
    /// Measure an idle vLLM and write its latency profile.
    Calibrate(Box<calibrate::CalibrateArgs>),
    /// Simulate a measured run and say how far the simulation is off.
    Validate(Box<validate::ValidateArgs>),
    /// Look at traces.
    Trace {
        #[command(subcommand)]
        command: trace::TraceCommand,
    },
    /// List the routing policies and their parameters.
    Policies(inspect::PoliciesArgs),
    /// List the built-in latency profiles, or show one with the source of each number.
    Profiles(inspect::ProfilesArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Mock(args) => mock::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Experiment { command } => experiment::run(&command),
        Command::Replay(args) => replay::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Trace { command } => trace::run(&command),
        Command::Policies(args) => inspect::policies(&args),
        Command::Profiles(args) => inspect::profiles(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kvroute", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough (`kvroute … | head`).
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", format!("{failure:#}").trim_end());
            failure.exit_code()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
