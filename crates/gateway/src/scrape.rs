//! Reads the few figures that routing needs from an instance's `/metrics` page.

use kvroute_types::{LoadSnapshot, Timestamp};

/// What one page said. A figure that was not on it is `None`, never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Page {
    waiting: Option<f64>,
    running: Option<f64>,
    kv_cache_usage: Option<f64>,
    /// Prompt tokens looked up in the prefix cache, and found there.
    pub(crate) prefix_cache_queries: Option<f64>,
    pub(crate) prefix_cache_hits: Option<f64>,
    prompt_tokens: Option<f64>,
    generation_tokens: Option<f64>,
}

/// Figures and the names they have, or had (vLLM 0.32 first; `gpu_` names are those of the V0 engine).
const NAMES: [(Figure, &[&str]); 7] = [
    (Figure::Waiting, &["vllm:num_requests_waiting"]),
    (Figure::Running, &["vllm:num_requests_running"]),
    (Figure::KvCacheUsage, &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"]),
    (
        Figure::PrefixCacheQueries,
        &[
            "vllm:prefix_cache_queries_total",
            "vllm:prefix_cache_queries",
            "vllm:gpu_prefix_cache_queries_total",
            "vllm:gpu_prefix_cache_queries",
        ],
    ),
    (
        Figure::PrefixCacheHits,
        &[
            "vllm:prefix_cache_hits_total",
            "vllm:prefix_cache_hits",
            "vllm:gpu_prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_hits",
        ],
    ),
    (Figure::PromptTokens, &["vllm:prompt_tokens_total"]),
    (Figure::GenerationTokens, &["vllm:generation_tokens_total"]),
];

#[derive(Clone, Copy)]
enum Figure {
    Waiting,
    Running,
    KvCacheUsage,
    PrefixCacheQueries,
    PrefixCacheHits,
    PromptTokens,
    GenerationTokens,
}

impl Page {
    /// Reads a page. Counts add up over its engines (data-parallel ranks); cache usage is the fullest one's.
    pub(crate) fn parse(text: &str) -> Self {
        let mut page = Self::default();
        for line in text.lines().filter(|line| line.starts_with("vllm:")) {
            let name_end = line.find(['{', ' ']).unwrap_or(line.len());
            let Some(figure) = figure(&line[..name_end]) else { continue };
            // Label values may hold anything but an unescaped quote, so the value is sought from the closing brace.
            let value = line.rfind('}').map_or(&line[name_end..], |end| &line[end + 1..]);
            let value = value.split_whitespace().next().and_then(|value| value.parse::<f64>().ok());
            let Some(value) = value.filter(|value| value.is_finite() && *value >= 0.0) else {
                continue;
            };
            let slot = page.slot(figure);
            *slot = Some(match (figure, *slot) {
                (_, None) => value,
                (Figure::KvCacheUsage, Some(other)) => value.max(other),
                (_, Some(sum)) => sum + value,
            });
        }
        page
    }

    /// The load reading, if the page has its two counts.
    pub(crate) fn load(&self, as_of: Timestamp) -> Option<LoadSnapshot> {
        Some(LoadSnapshot {
            waiting: count(self.waiting?),
            running: count(self.running?),
            kv_cache_usage: self.kv_cache_usage.unwrap_or(0.0).min(1.0),
            as_of,
        })
    }

    /// Tokens processed since the instance started: while it moves, the engine is alive.
    pub(crate) fn progress(&self) -> Option<f64> {
        Some(self.prompt_tokens? + self.generation_tokens?)
    }

    /// Today's names of the figures that are not there.
    pub(crate) fn missing(mut self) -> Vec<&'static str> {
        NAMES
            .iter()
            .filter(|(figure, _)| self.slot(*figure).is_none())
            .filter_map(|(_, names)| names.first().copied())
            .collect()
    }

    fn slot(&mut self, figure: Figure) -> &mut Option<f64> {
        match figure {
            Figure::Waiting => &mut self.waiting,
            Figure::Running => &mut self.running,
            Figure::KvCacheUsage => &mut self.kv_cache_usage,
            Figure::PrefixCacheQueries => &mut self.prefix_cache_queries,
            Figure::PrefixCacheHits => &mut self.prefix_cache_hits,
            Figure::PromptTokens => &mut self.prompt_tokens,
            Figure::GenerationTokens => &mut self.generation_tokens,
        }
    }
}

fn figure(name: &str) -> Option<Figure> {
    NAMES.iter().find(|(_, names)| names.contains(&name)).map(|(figure, _)| *figure)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be finite and not negative; the cast saturates"
)]
fn count(value: f64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine=\"0\",model_name=\"a } b\"} 3.0
vllm:num_requests_running{engine=\"1\",model_name=\"a } b\"} 4.0
vllm:num_requests_waiting{engine=\"0\"} 2.0
vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 9.0
vllm:kv_cache_usage_perc{engine=\"0\"} 0.25
vllm:kv_cache_usage_perc{engine=\"1\"} 0.5
vllm:prefix_cache_queries_total{engine=\"0\"} 32563.0
vllm:prefix_cache_queries_created{engine=\"0\"} 1.7953678952632656e+09
vllm:prefix_cache_hits_total{engine=\"0\"} 352.0
vllm:prompt_tokens_total{engine=\"0\"} 1e3
vllm:generation_tokens_total{engine=\"0\"} 5.0
";

    #[test]
    fn engines_add_up() {
        let page = Page::parse(PAGE);
        let load = page.load(Timestamp::ZERO).unwrap();
        assert_eq!((load.running, load.waiting), (7, 2));
        assert_eq!(load.kv_cache_usage.to_bits(), 0.5_f64.to_bits());
        assert_eq!(page.prefix_cache_queries, Some(32563.0));
        assert_eq!(page.progress(), Some(1005.0));
        assert!(page.missing().is_empty());
    }

    #[test]
    fn old_names_are_known_and_missing_ones_named() {
        let page = Page::parse(
            "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.1\n",
        );
        assert!(page.load(Timestamp::ZERO).is_some());
        assert_eq!(
            page.missing(),
            [
                "vllm:prefix_cache_queries_total",
                "vllm:prefix_cache_hits_total",
                "vllm:prompt_tokens_total",
                "vllm:generation_tokens_total"
            ]
        );
    }

    #[test]
    fn garbage_is_no_reading() {
        for page in ["", "<html>", "vllm:num_requests_running", "vllm:num_requests_running{x NaN"] {
            assert_eq!(Page::parse(page), Page::default(), "{page}");
        }
        let negative = Page::parse("vllm:num_requests_waiting -1\nvllm:num_requests_running 1e999");
        assert_eq!(negative.load(Timestamp::ZERO), None);
    }
}
