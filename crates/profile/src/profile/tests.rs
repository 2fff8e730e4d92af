use std::error::Error;

use super::*;

const GOOD: &str = include_str!("../../profiles/h100-llama3.1-8b.toml");

/// The error of a good profile with one piece of text replaced.
fn error_with(from: &str, to: &str) -> ProfileError {
    assert!(GOOD.contains(from), "{from} is in the profile");
    LatencyProfile::from_toml(&GOOD.replacen(from, to, 1)).unwrap_err()
}

#[test]
fn numbers_out_of_range_are_named_with_their_range() {
    let cases = [
        (
            "overhead_s = 0.0",
            "overhead_s = -1e-3",
            "`request_overhead_s` is -0.001; it must be finite and 0 or more",
        ),
        (
            "kernel_floor_s = 0.0",
            "kernel_floor_s = nan",
            "`step.kernel_floor_s` is NaN; it must be finite and 0 or more",
        ),
        ("linear_knee = 2", "linear_knee = 3", "`step.linear_knee` is 3; it must be 1, 2, 4 or 8"),
        (
            "linear_tile_tokens = 1",
            "linear_tile_tokens = 0",
            "`step.linear_tile_tokens` is 0; it must be 1 or more",
        ),
        ("kv_blocks = 27900", "kv_blocks = 0", "`engine.kv_blocks` is 0; it must be 1 or more"),
    ];
    for (from, to, message) in cases {
        assert_eq!(error_with(from, to).to_string(), message);
    }
}

#[test]
fn engines_that_vllm_would_refuse_are_refused() {
    assert_eq!(
        error_with("kv_blocks = 27900", "kv_blocks = 8192").to_string(),
        "`engine.max_model_len` is 131072, but 8192 blocks of 16 tokens less the null block hold 131056: \
         lower it or raise `engine.kv_blocks`"
    );
    assert!(LatencyProfile::from_toml(&GOOD.replace("= 27900", "= 8193")).is_ok());
    assert_eq!(
        error_with("max_num_seqs = 1024", "max_num_seqs = 8193").to_string(),
        "`engine.max_num_seqs` is 8193, more than `engine.max_num_batched_tokens` = 8192: lower it"
    );
}

#[test]
fn keys_are_those_of_a_profile() {
    let error = error_with("kernel_floor_s = 0.0", "kernel_flor_s = 0.0");
    assert!(error.to_string().starts_with("not a latency profile in TOML"));
    let source = error.source().unwrap().to_string();
    assert!(source.contains("unknown field `kernel_flor_s`"), "{source}");
}

#[test]
fn every_number_has_a_source_and_every_source_a_number() {
    assert_eq!(
        error_with("\"engine.kv_blocks\"", "\"engine.block_size\"").to_string(),
        "no source for `engine.kv_blocks`: name it in the `fields` of a [[sources]] entry, \
         as an assumption if it is one"
    );
    let error = error_with("\"engine.kv_blocks\"", "\"engine.blocks\"").to_string();
    assert!(
        error.starts_with("a [[sources]] entry names `engine.blocks`, which is no field"),
        "{error}"
    );
    assert!(error.contains("step.overhead_s"), "{error}");
}

#[test]
fn what_a_profile_may_leave_out_needs_a_source_only_if_it_is_there() {
    let with = |tail: &str| {
        LatencyProfile::from_toml(&GOOD.replacen("[engine]", &format!("{tail}\n[engine]"), 1))
    };
    assert!(with("decode_tail_s_per_token = 0.0").is_ok());
    assert_eq!(
        with("decode_tail_s_per_token = 7e-7").unwrap_err().to_string(),
        "no source for `step.decode_tail_s_per_token`: name it in the `fields` of a [[sources]] entry, \
         as an assumption if it is one"
    );
    let sourced = GOOD.replacen(
        "\"step.prefill_wave_rows\"",
        "\"step.prefill_wave_rows\", \"step.linear_jump_s\"",
        1,
    );
    assert!(LatencyProfile::from_toml(&sourced).is_ok(), "a source for a 0 is no error");
}

#[test]
fn deserialising_by_any_road_checks() {
    let profile = LatencyProfile::from_toml(GOOD).unwrap();
    let json = serde_json::to_string(&profile).unwrap();
    assert_eq!(serde_json::from_str::<LatencyProfile>(&json).unwrap(), profile);
    let broken = json.replace("\"kv_blocks\":27900", "\"kv_blocks\":0");
    let error = serde_json::from_str::<LatencyProfile>(&broken).unwrap_err();
    assert!(error.to_string().contains("`engine.kv_blocks` is 0"), "{error}");
}

#[test]
fn the_names_of_numbers_are_their_paths() {
    // It leaves nothing out.
    let profile = LatencyProfile::builtin("rtx4090-llama3.1-8b").unwrap();
    let json = serde_json::to_value(&profile).unwrap();
    for Number { field, value, .. } in profile.numbers() {
        let at = field.split('.').fold(&json, |value, key| &value[key]);
        assert_eq!(at.as_f64(), Some(value), "{field}");
    }
    let count = |key: &str| json[key].as_object().unwrap().len();
    assert_eq!(profile.numbers().len(), 3 + count("step") + count("engine"));
}

#[test]
fn overheads_are_whole_nanoseconds() {
    let profile = LatencyProfile {
        request_overhead_s: 3e-3,
        request_overhead_s_per_prompt_token: 1e-6,
        response_overhead_s: 5e-4,
        ..LatencyProfile::from_toml(GOOD).unwrap()
    };
    assert_eq!(profile.request_overhead_ns(0), 3_000_000);
    assert_eq!(profile.request_overhead_ns(1000), 4_000_000);
    assert_eq!(profile.response_overhead_ns(), 500_000);
}
