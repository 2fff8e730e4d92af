use kvroute_profile::{LatencyProfile, SourceKind, StepLoad};

#[test]
fn every_builtin_loads_under_its_own_name() {
    let names: Vec<_> = LatencyProfile::names().collect();
    assert!(names.is_sorted(), "{names:?}");
    for name in names {
        let profile = LatencyProfile::builtin(name).unwrap();
        assert_eq!(profile.name, name);
        assert!(!profile.description.is_empty());
        for source in &profile.sources {
            assert!(!source.what.is_empty() && !source.origin.is_empty(), "{name}: {source:?}");
        }
    }
}

#[test]
fn an_unknown_name_lists_the_known() {
    let error = LatencyProfile::builtin("b200").unwrap_err();
    assert_eq!(
        error.to_string(),
        "no built-in profile `b200`; take one of a100-llama3.1-8b, cpu-tiny, h100-llama3.1-8b, \
         rtx4090-llama3.1-8b, rtx5080-half-qwen2.5-0.5b, or the path of a TOML file"
    );
}

#[test]
fn profiles_survive_toml_and_json() {
    for name in LatencyProfile::names() {
        let profile = LatencyProfile::builtin(name).unwrap();
        let text = toml::to_string(&profile).unwrap();
        assert_eq!(LatencyProfile::from_toml(&text).unwrap(), profile);
        let json = serde_json::to_string(&profile).unwrap();
        assert_eq!(serde_json::from_str::<LatencyProfile>(&json).unwrap(), profile);
    }
}

#[test]
fn a_number_supposed_without_origin_is_called_an_assumption() {
    for name in LatencyProfile::names() {
        for source in LatencyProfile::builtin(name).unwrap().sources {
            assert!(source.origin != "none" || source.kind == SourceKind::Assumption, "{source:?}");
        }
    }
}

/// Times that must not change by a nanosecond on any machine: a decode batch, a full prefill step,
/// a short suffix of a cached prompt beside decodes.
#[test]
fn step_times_are_the_same_to_the_nanosecond_everywhere() {
    let decode = StepLoad::default().with_decodes(32, 32 * 1024);
    let prefill = StepLoad::default().with_chunk(0, 2048, true);
    let mixed = StepLoad::default().with_chunk(3000, 40, true).with_decodes(8, 8 * 900);
    let times: Vec<_> = LatencyProfile::names()
        .map(|name| {
            let profile = LatencyProfile::builtin(name).unwrap();
            (name, [decode, prefill, mixed].map(|load| profile.step_ns(&load)))
        })
        .collect();
    assert_eq!(
        times,
        [
            ("a100-llama3.1-8b", [14_943_907, 130_080_416, 13_229_583]),
            ("cpu-tiny", [19_100_318, 248_128_538, 18_383_972]),
            ("h100-llama3.1-8b", [8_209_820, 43_447_635, 6_841_385]),
            ("rtx4090-llama3.1-8b", [22_886_150, 192_336_956, 23_339_004]),
            ("rtx5080-half-qwen2.5-0.5b", [5_135_585, 21_982_934, 5_062_397]),
        ]
    );
}
