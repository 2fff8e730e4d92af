//! The `/metrics` page: vLLM's series in vLLM's form (R59-R66).
//!
//! Counters and gauges are the engine's own. Histograms are kept here, from what the engine puts out. Left out are the
//! series of the HTTP framework and the process (`http_*`, `process_*`, `python_*`). Times are model times: with a
//! `time_scale` above 1 they are longer than what a client measures.

use std::fmt::Write as _;

use kvroute_engine::EngineConfig;

use crate::device::Snapshot;

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const ITL: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const ITERATION: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// A histogram in the exposition format's sense.
#[derive(Clone, Debug, PartialEq)]
struct Histogram {
    bounds: Vec<f64>,
    /// Samples above the bound before and up to this one; the last entry is above all bounds.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        Self { bounds: bounds.to_vec(), counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn observe(&mut self, value: f64) {
        self.counts[self.bounds.partition_point(|&bound| bound < value)] += 1;
        self.sum += value;
    }

    fn observe_ns(&mut self, ns: u64) {
        self.observe(ns as f64 / 1e9);
    }
}

/// The 1-2-5 series up to `max_model_len`.
fn token_bounds(max_model_len: u32) -> Vec<f64> {
    let decades = (0..=9).map(|power| 10_u64.pow(power));
    decades
        .flat_map(|decade| [1, 2, 5].map(|mantissa| mantissa * decade))
        .take_while(|&bound| bound <= u64::from(max_model_len))
        .map(|bound| bound as f64)
        .collect()
}

/// What is observed when a request ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FinishedSample {
    pub(crate) e2e_ns: u64,
    pub(crate) queue_ns: u64,
    pub(crate) prefill_ns: u64,
    pub(crate) decode_ns: u64,
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) output_tokens: u32,
    pub(crate) max_tokens: u32,
    pub(crate) preemptions: u32,
}

/// All histograms of one engine (R62).
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_latency: Histogram,
    queue_time: Histogram,
    inference_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    preemptions: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    prefill_kv_computed_tokens: Histogram,
    max_generation_tokens: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
    iteration_tokens: Histogram,
}

impl Samples {
    pub(crate) fn new(max_model_len: u32) -> Self {
        let tokens = || Histogram::new(&token_bounds(max_model_len));
        let latency = || Histogram::new(LATENCY);
        Self {
            time_to_first_token: Histogram::new(TTFT),
            inter_token_latency: Histogram::new(ITL),
            time_per_output_token: Histogram::new(ITL),
            e2e_latency: latency(),
            queue_time: latency(),
            inference_time: latency(),
            prefill_time: latency(),
            decode_time: latency(),
            preemptions: Histogram::new(PREEMPTIONS),
            prompt_tokens: tokens(),
            generation_tokens: tokens(),
            prefill_kv_computed_tokens: tokens(),
            max_generation_tokens: tokens(),
            params_n: Histogram::new(N),
            params_max_tokens: tokens(),
            iteration_tokens: Histogram::new(ITERATION),
        }
    }

    pub(crate) fn first_token(&mut self, since_arrival_ns: u64) {
        self.time_to_first_token.observe_ns(since_arrival_ns);
    }

    pub(crate) fn later_token(&mut self, gap_ns: u64) {
        self.inter_token_latency.observe_ns(gap_ns);
    }

    /// Tokens of an output batch, prefill of first tokens included (R65).
    pub(crate) fn iteration(&mut self, tokens: u64) {
        self.iteration_tokens.observe(tokens as f64);
    }

    /// All `n` requests of a group have ended.
    pub(crate) fn group(&mut self, n: u32, longest: u32) {
        self.params_n.observe(f64::from(n));
        self.max_generation_tokens.observe(f64::from(longest));
    }

    pub(crate) fn finished(&mut self, sample: &FinishedSample) {
        let FinishedSample {
            e2e_ns,
            queue_ns,
            prefill_ns,
            decode_ns,
            prompt_tokens,
            cached_tokens,
            output_tokens,
            max_tokens,
            preemptions,
        } = *sample;
        let gaps = output_tokens.saturating_sub(1);
        let per_token = if gaps > 0 { decode_ns as f64 / 1e9 / f64::from(gaps) } else { 0.0 };
        self.time_per_output_token.observe(per_token);
        self.e2e_latency.observe_ns(e2e_ns);
        self.queue_time.observe_ns(queue_ns);
        self.inference_time.observe_ns(prefill_ns + decode_ns);
        self.prefill_time.observe_ns(prefill_ns);
        self.decode_time.observe_ns(decode_ns);
        self.preemptions.observe(f64::from(preemptions));
        self.prompt_tokens.observe(f64::from(prompt_tokens));
        self.generation_tokens.observe(f64::from(output_tokens));
        self.prefill_kv_computed_tokens.observe(f64::from(prompt_tokens - cached_tokens));
        self.params_max_tokens.observe(f64::from(max_tokens));
    }
}

/// What the page says besides the engine's numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageContext<'a> {
    pub(crate) model: &'a str,
    pub(crate) engine: &'a EngineConfig,
    /// When the server started, s since the Unix epoch.
    pub(crate) created_s: f64,
}

/// The whole page.
pub(crate) fn render(context: &PageContext<'_>, snapshot: &Snapshot) -> String {
    let mut page = Page { text: String::with_capacity(64 * 1024), context };
    page.scheduler(snapshot);
    page.tokens(snapshot);
    page.requests(snapshot);
    page.histograms(&snapshot.samples);
    page.cache_config();
    page.text
}

type Series<'a> = &'a [(Option<(&'a str, &'a str)>, u64)];

struct Page<'a> {
    text: String,
    context: &'a PageContext<'a>,
}

impl Page<'_> {
    fn scheduler(&mut self, snapshot: &Snapshot) {
        for (name, what) in [
            ("estimated_flops", "floating point operations"),
            ("estimated_read_bytes", "bytes read from memory"),
            ("estimated_write_bytes", "bytes written to memory"),
        ] {
            let help = format!(
                "Estimated number of {what} per GPU (for Model Flops Utilization calculations)."
            );
            self.counter(&format!("{name}_per_gpu"), &help, &[(None, 0)]);
        }
        let gauges = &snapshot.gauges;
        let count = |value: u32| f64::from(value);
        self.gauge(
            "num_requests_running",
            "Number of requests in model execution batches.",
            &[(None, count(gauges.running))],
        );
        self.gauge(
            "num_requests_waiting",
            "Number of requests waiting to be processed.",
            &[(None, count(gauges.waiting))],
        );
        self.gauge(
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; \
             'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all \
             reasons equals vllm:num_requests_waiting.",
            &[
                (Some(("reason", "capacity")), count(gauges.waiting.saturating_sub(gauges.deferred))),
                (Some(("reason", "deferred")), count(gauges.deferred)),
            ],
        );
        self.gauge(
            "engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; \
             weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
            &[
                (Some(("sleep_state", "awake")), 1.0),
                (Some(("sleep_state", "weights_offloaded")), 0.0),
                (Some(("sleep_state", "discard_all")), 0.0),
            ],
        );
        self.gauge(
            "kv_cache_usage_perc",
            "KV-cache usage. 1 means 100 percent usage.",
            &[(None, gauges.kv_cache_usage)],
        );
    }

    fn tokens(&mut self, snapshot: &Snapshot) {
        let counters = &snapshot.counters;
        let source = |name| Some(("source", name));
        let queried = "in terms of number of queried tokens.";
        let cached = "in terms of number of cached tokens.";
        let external = "from KV connector cross-instance cache sharing,";
        let counted: [(&str, String, Series<'_>); 12] = [
            (
                "prefix_cache_queries",
                format!("Prefix cache queries, {queried}"),
                &[(None, counters.prefix_cache_queries)],
            ),
            (
                "prefix_cache_hits",
                format!("Prefix cache hits, {cached}"),
                &[(None, counters.prefix_cache_hits)],
            ),
            (
                "external_prefix_cache_queries",
                format!("External prefix cache queries {external} {queried}"),
                &[(None, 0)],
            ),
            (
                "external_prefix_cache_hits",
                format!("External prefix cache hits {external} {cached}"),
                &[(None, 0)],
            ),
            (
                "mm_cache_queries",
                "Multi-modal cache queries, in terms of number of queried items.".to_owned(),
                &[(None, 0)],
            ),
            (
                "mm_cache_hits",
                "Multi-modal cache hits, in terms of number of cached items.".to_owned(),
                &[(None, 0)],
            ),
            (
                "num_preemptions",
                "Cumulative number of preemption from the engine.".to_owned(),
                &[(None, counters.preemptions)],
            ),
            (
                "prompt_tokens",
                "Number of prefill tokens processed.".to_owned(),
                &[(None, counters.prompt_tokens)],
            ),
            (
                "prompt_tokens_by_source",
                "Number of prompt tokens by source.".to_owned(),
                &[
                    (source("local_compute"), counters.prompt_tokens_computed),
                    (source("local_cache_hit"), counters.prompt_tokens_cached),
                    (source("external_kv_transfer"), 0),
                ],
            ),
            (
                "prompt_tokens_cached",
                "Number of cached prompt tokens (local + external).".to_owned(),
                &[(None, counters.prompt_tokens_cached)],
            ),
            (
                "prompt_tokens_cached_by_source",
                "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to \
                 DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at \
                 admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits."
                    .to_owned(),
                &[
                    (source("device"), counters.prefix_cache_hits),
                    (source("host"), 0),
                    (source("p2p"), 0),
                    (source("disk"), 0),
                    (source("external_unspecified"), 0),
                ],
            ),
            (
                "generation_tokens",
                "Number of generation tokens processed.".to_owned(),
                &[(None, counters.generation_tokens)],
            ),
        ];
        for (name, help, series) in counted {
            self.counter(name, &help, series);
        }
    }

    fn requests(&mut self, snapshot: &Snapshot) {
        let counters = &snapshot.counters;
        let reason = |name| Some(("finished_reason", name));
        // A client that disconnects is no abort in this sense (R61).
        self.counter(
            "request_success",
            "Count of successfully processed requests.",
            &[
                (reason("stop"), counters.finished_stop),
                (reason("length"), counters.finished_length),
                (reason("abort"), 0),
                (reason("error"), 0),
                (reason("repetition"), 0),
            ],
        );
        let name = "admission_rejections";
        let help = "Number of admission attempts rejected by a queue limit, by reason.";
        let model = escape(self.context.model);
        for (suffix, kind, value) in
            [("total", "counter", 0.0), ("created", "gauge", self.context.created_s)]
        {
            self.head(&format!("{name}_{suffix}"), help, kind);
            for reason in ["max_num_queued_reqs", "max_num_queued_tokens"] {
                let labels = format!("model_name=\"{model}\",reason=\"{reason}\"");
                self.line(&format!("{name}_{suffix}"), &labels, value);
            }
        }
    }

    fn histograms(&mut self, samples: &Samples) {
        let Samples {
            time_to_first_token,
            inter_token_latency,
            time_per_output_token,
            e2e_latency,
            queue_time,
            inference_time,
            prefill_time,
            decode_time,
            preemptions,
            prompt_tokens,
            generation_tokens,
            prefill_kv_computed_tokens,
            max_generation_tokens,
            params_n,
            params_max_tokens,
            iteration_tokens,
        } = samples;
        for (name, help, histogram) in [
            ("request_prompt_tokens", "Number of prefill tokens processed.", prompt_tokens),
            (
                "request_generation_tokens",
                "Number of generation tokens processed.",
                generation_tokens,
            ),
            (
                "iteration_tokens_total",
                "Histogram of number of tokens per engine_step.",
                iteration_tokens,
            ),
            (
                "request_max_num_generation_tokens",
                "Histogram of maximum number of requested generation tokens.",
                max_generation_tokens,
            ),
            ("request_params_n", "Histogram of the n request parameter.", params_n),
            (
                "request_params_max_tokens",
                "Histogram of the max_tokens request parameter.",
                params_max_tokens,
            ),
            (
                "time_to_first_token_seconds",
                "Histogram of time to first token in seconds.",
                time_to_first_token,
            ),
            (
                "inter_token_latency_seconds",
                "Histogram of inter-token latency in seconds.",
                inter_token_latency,
            ),
            (
                "request_time_per_output_token_seconds",
                "Histogram of time_per_output_token_seconds per request.",
                time_per_output_token,
            ),
            (
                "e2e_request_latency_seconds",
                "Histogram of e2e request latency in seconds.",
                e2e_latency,
            ),
            (
                "request_queue_time_seconds",
                "Histogram of time spent in WAITING phase for request.",
                queue_time,
            ),
            (
                "request_inference_time_seconds",
                "Histogram of time spent in RUNNING phase for request.",
                inference_time,
            ),
            (
                "request_prefill_time_seconds",
                "Histogram of time spent in PREFILL phase for request.",
                prefill_time,
            ),
            (
                "request_decode_time_seconds",
                "Histogram of time spent in DECODE phase for request.",
                decode_time,
            ),
            (
                "request_num_preemptions",
                "Histogram of the number of times a request was preempted.",
                preemptions,
            ),
            (
                "request_prefill_kv_computed_tokens",
                "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
                prefill_kv_computed_tokens,
            ),
        ] {
            self.histogram(name, help, histogram);
        }
    }

    /// One label per field of vLLM's `CacheConfig`, in the order of their names; where the mock has no such thing, the
    /// value is vLLM's default.
    fn cache_config(&mut self) {
        let EngineConfig { block_size, kv_blocks, max_model_len, enable_prefix_caching, .. } =
            self.context.engine;
        let tokens = u64::from(*kv_blocks) * u64::from(block_size.get());
        let python_bool = |value: bool| if value { "True" } else { "False" }.to_owned();
        let fixed = |value: &str| value.to_owned();
        let labels = [
            ("_block_size_resolved", fixed("True")),
            ("block_size", block_size.to_string()),
            ("cache_dtype", fixed("auto")),
            ("cache_hit_alignment_tokens", fixed("None")),
            ("effective_attention_block_size", block_size.to_string()),
            ("enable_mamba_shared_prefix_checkpoint", fixed("False")),
            ("enable_prefix_caching", python_bool(*enable_prefix_caching)),
            ("engine", fixed("0")),
            ("gpu_memory_utilization", fixed("0.92")),
            ("hash_block_size", fixed("None")),
            ("is_attention_free", fixed("False")),
            ("kv_cache_dtype_skip_layers", fixed("[]")),
            ("kv_cache_layout", fixed("None")),
            ("kv_cache_max_concurrency", number(tokens as f64 / f64::from(*max_model_len))),
            ("kv_cache_memory_bytes", fixed("None")),
            ("kv_cache_size_tokens", tokens.to_string()),
            ("kv_offloading_backend", fixed("native")),
            ("kv_offloading_size", fixed("None")),
            ("kv_sharing_fast_prefill", fixed("False")),
            ("mamba_block_size", fixed("None")),
            ("mamba_cache_dtype", fixed("auto")),
            ("mamba_cache_mode", fixed("none")),
            ("mamba_page_size_padded", fixed("None")),
            ("mamba_ssm_cache_dtype", fixed("float32")),
            ("num_cpu_blocks", fixed("None")),
            ("num_gpu_blocks", kv_blocks.to_string()),
            ("num_gpu_blocks_override", fixed("None")),
            ("prefix_cache_retention_interval", fixed("0")),
            ("prefix_caching_hash_algo", fixed("sha256")),
            ("prefix_match_unit", fixed("None")),
            ("replayssm_buffer_len", fixed("16")),
            ("skip_page_size_padded", fixed("None")),
            ("sliding_window", fixed("None")),
            ("swa_bounded_replay", fixed("True")),
            ("use_kda_recoverssm", fixed("False")),
            ("use_replayssm", fixed("False")),
            ("user_specified_block_size", fixed("True")),
        ];
        let labels = labels.map(|(name, value)| format!("{name}=\"{value}\"")).join(",");
        self.head("cache_config_info", "Information of the LLMEngine CacheConfig", "gauge");
        self.line("cache_config_info", &labels, 1.0);
    }

    fn counter(&mut self, name: &str, help: &str, series: Series<'_>) {
        self.head(&format!("{name}_total"), help, "counter");
        for &(label, value) in series {
            self.line(&format!("{name}_total"), &self.labels(label), value as f64);
        }
        self.head(&format!("{name}_created"), help, "gauge");
        for &(label, _) in series {
            self.line(&format!("{name}_created"), &self.labels(label), self.context.created_s);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, series: &[(Option<(&str, &str)>, f64)]) {
        self.head(name, help, "gauge");
        for &(label, value) in series {
            self.line(name, &self.labels(label), value);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let mut below = 0;
        let bounds = histogram.bounds.iter().copied().chain([f64::INFINITY]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            below += count;
            let labels = self.labels(Some(("le", &number(bound))));
            self.line(&format!("{name}_bucket"), &labels, below as f64);
        }
        self.line(&format!("{name}_count"), &self.labels(None), below as f64);
        self.line(&format!("{name}_sum"), &self.labels(None), histogram.sum);
        self.head(&format!("{name}_created"), help, "gauge");
        self.line(&format!("{name}_created"), &self.labels(None), self.context.created_s);
    }

    /// Base labels and one more, sorted by name.
    fn labels(&self, extra: Option<(&str, &str)>) -> String {
        let model = escape(self.context.model);
        let mut labels = vec![("engine", "0"), ("model_name", &model)];
        labels.extend(extra);
        labels.sort_unstable();
        let labels = labels.into_iter().map(|(name, value)| format!("{name}=\"{value}\""));
        labels.collect::<Vec<_>>().join(",")
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.text, "vllm:{name}{{{labels}}} {}", number(value));
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', r"\\").replace('\n', r"\n").replace('"', "\\\"")
}

/// A number as Python's `prometheus_client` prints it: `repr`, but an exponent from 10^6 on.
fn number(value: f64) -> String {
    if value == f64::INFINITY {
        return "+Inf".to_owned();
    }
    if value != 0.0 && value.abs() < 1e-4 {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once("e-").unwrap_or((&text, "0"));
        return format!("{mantissa}e-{exponent:0>2}");
    }
    let text = format!("{value:.1}");
    let text = if text.parse() == Ok(value) { text } else { value.to_string() };
    match text.find('.') {
        Some(point) if value > 0.0 && point > 6 => {
            let digits = format!("{}.{}{}", &text[..1], &text[1..point], &text[point + 1..]);
            let mantissa = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{mantissa}e+{:0>2}", point - 1)
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_like_pythons() {
        for (value, text) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (0.025, "0.025"),
            (27.632_345_676_422_12, "27.63234567642212"),
            (32_563.0, "32563.0"),
            (123_456.0, "123456.0"),
            (1_000_000.0, "1e+06"),
            (1_234_567.5, "1.2345675e+06"),
            (1_795_367_895.262_920_1, "1.7953678952629201e+09"),
            (0.000_05, "5e-05"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn token_bounds_end_at_the_model_length() {
        for (max_model_len, last) in [(4_096, 2_000.0), (8_192, 5_000.0), (131_072, 100_000.0)] {
            assert_eq!(token_bounds(max_model_len).last(), Some(&last));
        }
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 9.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.counts, [2, 2, 1]);
    }
}
