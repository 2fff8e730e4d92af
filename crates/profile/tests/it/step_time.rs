use kvroute_profile::{LatencyProfile, StepLoad};
use proptest::prelude::*;

fn profiles() -> Vec<LatencyProfile> {
    LatencyProfile::names().map(|name| LatencyProfile::builtin(name).unwrap()).collect()
}

prop_compose! {
    fn load()(
        chunks in prop::collection::vec((0u32..20_000, 1u32..3000, any::<bool>()), 0..5),
        seqs in 0u32..300,
        mean_context in 1u64..20_000,
    ) -> StepLoad {
        chunks
            .into_iter()
            .fold(StepLoad::default(), |load, (before, chunk, samples)| {
                load.with_chunk(before, chunk, samples)
            })
            .with_decodes(seqs, u64::from(seqs) * mean_context)
    }
}

proptest! {
    #[test]
    fn a_cached_fixed_part_gives_the_same_bits(load in load()) {
        for profile in profiles() {
            let fixed_s = profile.fixed_s(load.tokens, load.sampled);
            prop_assert_eq!(profile.step_ns_with_fixed(fixed_s, &load), profile.step_ns(&load));
        }
    }

    #[test]
    fn more_work_takes_no_less_time(load in load(), extra in 1u32..500) {
        let wide = u64::from(extra);
        let context = (load.decode_seqs > 0).then(|| StepLoad {
            decode_context: load.decode_context + wide,
            ..load
        });
        let read = StepLoad { prefill_context: load.prefill_context + wide, ..load };
        let pairs = StepLoad { prefill_pairs: load.prefill_pairs + wide, ..load };
        let sampled = StepLoad { sampled: load.sampled + extra, ..load };
        let tokens = StepLoad { tokens: load.tokens + extra, ..load };
        for profile in profiles() {
            if load.tokens == 0 {
                prop_assert_eq!(profile.step_ns(&load), 0);
                continue;
            }
            let before = profile.step_ns(&load);
            prop_assert!(before >= 1);
            for more in [Some(read), Some(pairs), Some(sampled), Some(tokens), context]
                .into_iter()
                .flatten()
            {
                prop_assert!(profile.step_ns(&more) >= before, "{more:?} on {}", profile.name);
            }
        }
    }

    /// A cache hit pays: computing only the rest of a prompt is never slower than all of it.
    #[test]
    fn a_cached_prefix_never_slows_a_prompt(prompt in 32u32..2048, cached in 0u32..2048) {
        let cached = cached.min(prompt - 1);
        let cold = StepLoad::default().with_chunk(0, prompt, true);
        let warm = StepLoad::default().with_chunk(cached, prompt - cached, true);
        for profile in profiles() {
            prop_assert!(profile.step_ns(&warm) <= profile.step_ns(&cold), "{}", profile.name);
        }
    }
}
