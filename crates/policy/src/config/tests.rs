use super::*;
use crate::{
    Affinity, HashRule, LoadCacheConfig, PrefixAffinityConfig, StickyLeastLoadedConfig,
    ThresholdConfig,
};

fn parse(text: &str) -> Result<PolicyConfig, ParsePolicyError> {
    text.parse()
}

/// The message a user sees, with its cause.
fn message(text: &str) -> String {
    parse(text).expect_err("must not parse").to_string()
}

#[test]
fn names_variants_tags_and_policies_agree() {
    let core = ["round-robin", "jsq", "p2c", "session-affinity", "prefix-affinity", "load-cache"];
    assert_eq!(PolicyConfig::core().map(|config| config.name()), core);
    assert_eq!(PolicyConfig::names()[..6], core, "they are listed first");
    assert_eq!(PolicyConfig::names().len(), PolicyConfig::every().len());
    for config in PolicyConfig::every() {
        assert_eq!(table(config)["kind"].as_str(), Some(config.name()));
        assert_eq!(config.build(0).unwrap().name(), config.name());
        assert_eq!(PolicyConfig::from_name(config.name()), Ok(config));
        assert_eq!(toml::from_str(&format!("kind = \"{}\"", config.name())), Ok(config));
    }
}

#[test]
fn every_field_is_a_described_parameter_and_the_reverse() {
    for config in PolicyConfig::every() {
        let mut fields: Vec<_> = table(config).into_iter().map(|(key, _)| key).collect();
        fields.retain(|field| field != "kind");
        let mut described: Vec<_> =
            config.describe().parameters.iter().map(|parameter| parameter.name).collect();
        described.sort_unstable();
        assert_eq!(fields, described, "{}", config.name());
    }
}

#[test]
fn described_signals_are_those_the_router_is_asked_for() {
    let variants = [
        "jsq:load=in-flight",
        "p2c:load=waiting",
        "session-affinity:load=in-flight",
        "prefix-affinity:load=in-flight",
        "load-cache:affinity=paper,load=in-flight",
        "threshold:load=total",
        "spill-gate:load=waiting",
        "lmetric:load=total,queued_prefill=false",
        "llm-d-blend:kv_weight=0",
        "chwbl:load=total",
        "aibrix:load=total",
        "ray:load=waiting",
    ];
    let variants = variants.map(|text| parse(text).unwrap());
    for config in PolicyConfig::every().into_iter().chain(variants) {
        let signals = config.describe().signals;
        let reads = |names: &[&str]| signals.iter().any(|signal| names.contains(signal));
        let needs = config.build(0).unwrap().needs();
        assert_eq!(
            needs.index,
            reads(&[
                "matched_blocks",
                "matched_tokens",
                "is_last_for_prefix",
                "is_last_for_session"
            ]),
            "{config:?}"
        );
        assert_eq!(needs.prefill_left, reads(&["prefill_left"]), "{config:?}");
        assert_eq!(needs.load, reads(&["waiting", "running"]), "{config:?}");
        assert_eq!(needs.kv_cache_usage, reads(&["kv_cache_usage"]), "{config:?}");
        assert_eq!(needs.true_ttft, reads(&["true_ttft"]), "{config:?}");
        assert_eq!(needs.true_ttft, config.is_simulation_only(), "{config:?}");
    }
}

#[test]
fn what_only_a_simulation_knows_is_refused_elsewhere() {
    let refused = parse("oracle").unwrap().validate_live().unwrap_err();
    assert_eq!(
        refused.to_string(),
        "oracle decides by the engines' true state, which only a simulation knows; use it in `kvroute simulate` or in a \
         simulated experiment, or choose another policy here"
    );
    let live = PolicyConfig::every_live();
    assert!(live.iter().all(|config| config.validate_live() == Ok(())));
    let mut others = PolicyConfig::every();
    others.retain(|config| !live.contains(config));
    assert_eq!(others, [parse("oracle").unwrap()]);
}

#[test]
fn a_description_shows_the_defaults() {
    let shown = |name: &str| -> Vec<(&str, String)> {
        let description = PolicyConfig::from_name(name).unwrap().describe();
        description.parameters.into_iter().map(|p| (p.name, p.default)).collect()
    };
    assert_eq!(shown("round-robin"), []);
    assert_eq!(
        shown("prefix-affinity"),
        [("hash", "rendezvous"), ("queue_threshold", "10"), ("load", "total")]
            .map(|(name, default)| (name, default.to_owned()))
    );
    assert_eq!(
        shown("load-cache"),
        [("alpha", "0.4"), ("beta", "0.6"), ("affinity", "blocks"), ("load", "total")]
            .map(|(name, default)| (name, default.to_owned()))
    );
    let tuned = parse("load-cache:alpha=0.1").unwrap().describe();
    assert_eq!(tuned.parameters[0].default, "0.4", "the default, not the present value");
}

#[test]
fn described_defaults_parse_back_to_the_default() {
    for config in PolicyConfig::every() {
        let pairs: Vec<_> = config
            .describe()
            .parameters
            .into_iter()
            .map(|parameter| format!("{}={}", parameter.name, parameter.default))
            .collect();
        if !pairs.is_empty() {
            assert_eq!(parse(&format!("{}:{}", config.name(), pairs.join(","))), Ok(config));
        }
    }
}

#[test]
fn parameters_on_the_command_line() {
    assert_eq!(parse("round-robin"), Ok(PolicyConfig::RoundRobin {}));
    assert_eq!(
        parse("load-cache:alpha=1,beta=2.5e-1,affinity=paper,load=waiting"),
        Ok(PolicyConfig::LoadCache(LoadCacheConfig {
            alpha: 1.0,
            beta: 0.25,
            affinity: Affinity::Paper,
            load: LoadSignal::Waiting,
        }))
    );
    assert_eq!(
        parse("prefix-affinity:hash=modulo,queue_threshold=3"),
        Ok(PolicyConfig::PrefixAffinity(PrefixAffinityConfig {
            hash: HashRule::Modulo,
            queue_threshold: 3,
            load: LoadSignal::Total,
        }))
    );
}

#[test]
fn toml_and_command_line_give_the_same_config() {
    let from_toml: PolicyConfig =
        toml::from_str("kind = \"load-cache\"\nalpha = 0.4\nload = \"in-flight\"").unwrap();
    assert_eq!(parse("load-cache:alpha=0.4,load=in-flight"), Ok(from_toml));
    let text = toml::to_string(&from_toml).unwrap();
    assert_eq!(toml::from_str(&text), Ok(from_toml), "and back");
}

#[test]
fn errors_say_what_is_wrong_and_what_would_be_right() {
    assert_eq!(
        message("random"),
        format!("no policy is named `random`; known: {}", PolicyConfig::names().join(", "))
    );
    assert_eq!(message("jsq:alpha=1"), "jsq has no parameter `alpha`; known: load");
    assert_eq!(message("jsq:kind=p2c"), "jsq has no parameter `kind`; known: load");
    assert_eq!(
        message("round-robin:load=total"),
        "round-robin has no parameter `load`; it takes no parameters"
    );
    assert_eq!(message("jsq:"), "jsq: `` is not KEY=VALUE; known: load");
    assert_eq!(message("jsq:load"), "jsq: `load` is not KEY=VALUE; known: load");
    assert_eq!(
        message("session-affinity:hash=crc"),
        "session-affinity: `crc` does not fit `hash` (rendezvous (a new instance moves 1 / N of \
         the keys) or modulo (moves nearly all))"
    );
    assert_eq!(message("jsq:load=total,load=waiting"), "jsq: `load` is given twice; give it once");
    assert_eq!(
        message("load-cache:alpha=-1"),
        "load-cache: `alpha` is -1; give a finite number, at least 0"
    );
    assert_eq!(
        message("load-cache:beta=nan"),
        "load-cache: `beta` is NaN; give a finite number, at least 0"
    );
}

#[test]
fn a_number_out_of_its_range_is_told_the_range() {
    assert_eq!(
        message("threshold:match_threshold=1.5"),
        "threshold: `match_threshold` is 1.5; give a number from 0 to 1"
    );
}

/// Every parameter, set to another value than its default, survives both ways in.
#[test]
fn every_parameter_survives_toml_and_the_command_line() {
    for config in PolicyConfig::every() {
        for (key, value) in table(config) {
            let other = match (key.as_str(), value) {
                ("kind", _) => continue,
                (_, Value::Integer(value)) => Value::Integer(value + 1),
                // Upwards: no range ends at its default.
                (_, Value::Float(value)) if value < 1.0 => Value::Float(value + 0.125),
                (_, Value::Float(value)) => Value::Float(value * 1.5),
                (_, Value::Boolean(value)) => Value::Boolean(!value),
                (_, Value::String(word)) => Value::String(
                    match word.as_str() {
                        "total" | "in-flight" => "waiting",
                        "rendezvous" => "modulo",
                        "blocks" => "paper",
                        word => panic!("{}: another word than {word} for {key}?", config.name()),
                    }
                    .to_owned(),
                ),
                (_, value) => panic!("{}: {key} = {value} is no plain value", config.name()),
            };
            let text = format!("{}:{key}={}", config.name(), plain_text(&other));
            let changed = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_ne!(changed, config, "{text}");
            assert_eq!(table(changed)[&key], other, "{text}");
            let toml = toml::to_string(&changed).unwrap();
            assert_eq!(toml::from_str(&toml), Ok(changed), "{toml}");
        }
    }
}

/// The values that the field publishes, by which comparisons with it stand or fall.
#[test]
fn published_defaults() {
    assert_eq!(
        parse("threshold:match_threshold=0.3,balance_abs=64,balance_rel=1.5"),
        Ok(PolicyConfig::Threshold(ThresholdConfig::default()))
    );
    assert_eq!(
        parse("sticky-least-loaded:ttl_s=7200"),
        Ok(PolicyConfig::StickyLeastLoaded(StickyLeastLoadedConfig::default()))
    );
    for text in [
        "spill-gate:match_threshold=0.3,balance_rel=1.5,sigmas=2,margin_least=4,margin_most=64",
        "dynamo:prefill_scale=1,overlap_credit=1,overlap_decay=0,active_weight=0,temperature=0",
        "llm-d-blend:prefix_weight=3,queue_weight=2,kv_weight=2,lru_weight=0",
        "llm-d-sticky:match_share=0.8,saturation_tokens=286720",
        "lmetric:queued_prefill=true",
        "chwbl:load_factor=1.25",
        "preble:window_s=180,rebalance_ratio=1.5",
        "mooncake:prefill_tokens_per_s=15928",
        "aibrix:balance_abs=8,deviations=1",
        "ray:balance_abs=10,match_share=0.1",
    ] {
        let (name, _) = text.split_once(':').unwrap();
        assert_eq!(parse(text), parse(name), "{text}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_keeps_its_cause() {
    for (text, key) in [
        ("jsq:load=queue", "load"),
        ("load-cache:alpha=much", "alpha"),
        ("prefix-affinity:queue_threshold=-1", "queue_threshold"),
        ("prefix-affinity:queue_threshold=1.5", "queue_threshold"),
        ("session-affinity:hash=", "hash"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(
            matches!(&error, ParsePolicyError::Value { key: named, .. } if *named == key),
            "{text}: {error}"
        );
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn stray_keys_in_toml_are_refused() {
    for text in [
        "kind = \"round-robin\"\nload = \"total\"",
        "kind = \"jsq\"\nalpha = 1.0",
        "kind = \"load-cache\"\ngamma = 1.0",
        "kind = \"random\"",
        "load = \"total\"",
    ] {
        assert!(toml::from_str::<PolicyConfig>(text).is_err(), "{text}");
    }
}

#[test]
fn an_invalid_config_is_not_built() {
    let config = PolicyConfig::LoadCache(LoadCacheConfig { alpha: -1.0, ..Default::default() });
    assert!(matches!(
        config.build(0).err(),
        Some(InvalidPolicy::Weight { policy: "load-cache", parameter: "alpha", .. })
    ));
}
