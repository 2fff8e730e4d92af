//! `kvroute policies` and `kvroute profiles`.

use clap::Args;
use kvroute_policy::{PolicyConfig, PolicyDescription};
use kvroute_profile::LatencyProfile;

use crate::cluster_args::read_profile;
use crate::failure::Failure;
use crate::output::{Format, write_json, write_rows};

#[derive(Debug, Args)]
pub(crate) struct PoliciesArgs {
    /// Form of the list.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct ProfilesArgs {
    /// Show this profile in full: a built-in name or a TOML file.
    name: Option<String>,

    /// Form of the list.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn policies(args: &PoliciesArgs) -> Result<(), Failure> {
    let descriptions: Vec<PolicyDescription> =
        PolicyConfig::every().iter().map(PolicyConfig::describe).collect();
    if args.format == Format::Json {
        return Ok(write_json(&descriptions)?);
    }
    let mut rows = Vec::new();
    for policy in descriptions {
        let signals = policy.signals.join(", ");
        rows.push(vec![policy.name.to_owned(), String::new(), policy.summary.to_owned(), signals]);
        for parameter in policy.parameters {
            let setting = format!("{}={}", parameter.name, parameter.default);
            rows.push(vec![String::new(), setting, parameter.about.to_owned(), String::new()]);
        }
    }
    Ok(write_rows(args.format, &["policy", "parameter=default", "what it does", "signals"], &rows)?)
}

pub(crate) fn profiles(args: &ProfilesArgs) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        return show_profile(&read_profile(name)?, args.format);
    }
    let mut profiles = Vec::new();
    for name in LatencyProfile::names() {
        profiles.push(LatencyProfile::builtin(name).map_err(Failure::usage)?);
    }
    if args.format == Format::Json {
        return Ok(write_json(&profiles)?);
    }
    let rows: Vec<Vec<String>> = profiles
        .into_iter()
        .map(|profile| {
            let sizes = profile.engine;
            vec![
                profile.name,
                format!("{} x {}", sizes.kv_blocks, sizes.block_size),
                sizes.max_num_batched_tokens.to_string(),
                sizes.max_num_seqs.to_string(),
                sizes.max_model_len.to_string(),
                sizes.instances_per_device.to_string(),
                profile.description,
            ]
        })
        .collect();
    let header =
        ["profile", "KV blocks", "batched tokens", "seqs", "model len", "per device", "what"];
    Ok(write_rows(args.format, &header, &rows)?)
}

fn show_profile(profile: &LatencyProfile, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return Ok(write_json(profile)?);
    }
    let rows: Vec<Vec<String>> = profile
        .sources
        .iter()
        .map(|source| {
            let kind = format!("{:?}", source.kind).to_lowercase();
            vec![source.fields.join(" "), kind, source.what.clone(), source.origin.clone()]
        })
        .collect();
    println!("{}: {}", profile.name, profile.description);
    Ok(write_rows(format, &["fields", "kind", "what", "origin"], &rows)?)
}
