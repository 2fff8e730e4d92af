//! The page.

use std::fmt::Write as _;

use super::{
    Figure, Pair, Scenario, error_percent, escaped, finite, fixed, hit_percent, imbalance,
    infinite_cache_percent, percent, signed, ttft_mean_ms, ttft_p95_ms, words,
};
use crate::RunResult;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#222;--paper:#fff;--line:#ccc;--faint:#f4f4f4}
body{max-width:64rem;margin:0 auto;padding:1rem;color:var(--ink);background:var(--paper);\
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2}
h2{font-size:1.25rem;margin-top:2rem;border-bottom:1px solid var(--line)}
p,li{max-width:46rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}
figure{margin:0;max-width:36rem}
svg{display:block;width:100%;height:auto}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.75rem;line-height:1.35;font-variant-numeric:tabular-nums}
th,td{padding:.15rem .25rem;text-align:right;vertical-align:bottom}
tbody td{white-space:nowrap}
th{font-weight:600;overflow-wrap:normal}
thead th{border-bottom:1px solid var(--ink)}
tbody{border-bottom:1px solid var(--line)}
tbody th,thead th:first-child,td:first-of-type,thead th:nth-child(2){text-align:left;vertical-align:top}
tr.difference td{background:var(--faint)}
pre{padding:.6rem;background:var(--faint);white-space:pre-wrap;overflow-wrap:anywhere}
dt{font-weight:600}
dd{margin:0 0 .5rem 1rem;max-width:45rem}
@media screen and (prefers-color-scheme:dark){\
:root{--ink:#ddd;--paper:#1c1c1c;--line:#555;--faint:#2a2a2a}}
@media print{body{max-width:none;padding:0;font-size:10pt}table{font-size:6pt}.wide{overflow:visible}\
th,td{padding:.1rem .2rem}figure,tbody,dd{break-inside:avoid}h2{break-after:avoid}\
.figures{grid-template-columns:1fr 1fr}}
";

/// The methods note: term, meaning.
const DEFINITIONS: &[(&str, &str)] = &[
    (
        "Live, simulated",
        "Live is over HTTP, through the gateway, in real time. Simulated is the same requests and the \
         same routing core on a virtual clock, run several times. The instances of kvroute demo are modelled engines and \
         not GPUs in both, so there the comparison tests the router and its transport, not the model.",
    ),
    (
        "TTFT",
        "Time to first token, ms: from the moment the workload wanted to send the request to its first \
         output token, so that waiting to be sent counts. Over completed requests; quantiles are of \
         type 7.",
    ),
    (
        "Hit rate",
        "Prompt tokens found in a prefix cache over all prompt tokens, of completed requests; it is not \
         counted per request. The infinite cache is the bound: one cache that never evicts and is \
         shared by all instances.",
    ),
    (
        "Imbalance",
        "Largest over mean, over the instances, of the time-mean number of requests in flight. 1 is \
         even; the number of instances is the worst.",
    ),
    (
        "Difference",
        "Simulated less live: in percent of the live value (%), in percentage points (pt) for rates of \
         hits, as it is for counts and ratios.",
    ),
    ("Failures", "Requests and failures are of the whole run; other figures leave a warm-up out."),
    (
        "Runs",
        "Every run started from cold caches. The order of the runs was drawn at random from the seed. \
         Live runs are made once with one seed, so small differences between policies mean nothing.",
    ),
    (
        "±",
        "Standard deviation of the simulated figure over runs whose delays and load readings differ by \
         less than a live run's do. A policy that follows momentary load turns microseconds into other \
         choices, and these into other hits: a live run is one draw out of that spread, and the \
         simulated figure is the mean of it.",
    ),
    ("-", "Not measured, or not defined."),
];

/// A column of the table of all numbers.
struct Quantity {
    heading: &'static str,
    value: Figure,
    decimals: usize,
    difference: Difference,
}

/// How simulated is compared with live.
#[derive(Clone, Copy)]
enum Difference {
    /// In percent of live.
    Percent,
    /// In percentage points: both are percentages.
    Points,
    /// In the quantity's own unit.
    Plain,
}

const fn quantity(
    heading: &'static str,
    value: Figure,
    decimals: usize,
    difference: Difference,
) -> Quantity {
    Quantity { heading, value, decimals, difference }
}

const QUANTITIES: &[Quantity] = &[
    quantity("re\u{ad}quests", |run| Some(run.requests as f64), 0, Difference::Plain),
    quantity("failed", |run| Some(run.failed as f64), 0, Difference::Plain),
    quantity("TTFT mean, ms", ttft_mean_ms, 1, Difference::Percent),
    quantity("TTFT p50, ms", |run| finite(run.ttft_ms.p50), 1, Difference::Percent),
    quantity("TTFT p95, ms", ttft_p95_ms, 1, Difference::Percent),
    quantity("TTFT p99, ms", |run| finite(run.ttft_ms.p99), 1, Difference::Percent),
    quantity("TPOT mean, ms", |run| finite(run.tpot_ms.mean), 2, Difference::Percent),
    quantity("e2e mean, ms", |run| finite(run.e2e_ms.mean), 1, Difference::Percent),
    quantity("hit rate, %", hit_percent, 1, Difference::Points),
    quantity("infin. cache, %", infinite_cache_percent, 1, Difference::Points),
    quantity("index recall, %", |run| percent(run.index.recall), 1, Difference::Points),
    quantity("imbal\u{ad}ance", imbalance, 2, Difference::Plain),
    quantity("queue mean", |run| finite(run.load.queue_depth_mean), 2, Difference::Plain),
    quantity("done, req/s", |run| finite(run.completed_rps), 2, Difference::Percent),
    quantity("good\u{ad}put, req/s", |run| finite(run.goodput_rps), 2, Difference::Percent),
];

/// A page's beginning, down to its title, with more style than every page has. It needs nothing else: no network, no
/// script.
pub(crate) fn opening(title: &str, style: &str) -> String {
    let title = escaped(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    )
}

/// The whole page.
pub(super) fn page(title: &str, command: &str, scenarios: &[Scenario<'_>]) -> String {
    let mut page = opening(title, "");
    page.push_str("<h2>Summary</h2>\n<ul>\n");
    for sentence in words::summary(scenarios) {
        // Writing to a string cannot fail; so below.
        let _ = writeln!(page, "<li>{}</li>", escaped(&unbroken(&sentence)));
    }
    page.push_str("</ul>\n");
    for scenario in scenarios {
        push_scenario(&mut page, scenario);
    }
    page.push_str("<h2>Methods</h2>\n<dl>\n");
    for (term, meaning) in DEFINITIONS {
        let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", escaped(term), escaped(meaning));
    }
    let _ = write!(
        page,
        "</dl>\n<h2>Command</h2>\n<pre><code>{}</code></pre>\n<p>kvroute {}</p>\n</body>\n</html>\n",
        escaped(command),
        env!("CARGO_PKG_VERSION"),
    );
    page
}

/// Keeps a number and its unit on one line.
pub(crate) fn unbroken(sentence: &str) -> String {
    sentence.replace(" %", "\u{a0}%").replace(" ms", "\u{a0}ms")
}

fn push_scenario(page: &mut String, scenario: &Scenario<'_>) {
    let Scenario { workload, instances, seed, .. } = scenario;
    let plural = if *instances == 1 { "" } else { "s" };
    let _ = writeln!(
        page,
        "<section>\n<h2>Workload {}</h2>\n<p>{instances} instance{plural}, seed {seed}.</p>\n\
         <div class=\"figures\">",
        escaped(workload)
    );
    for (_, svg) in scenario.charts() {
        let _ = write!(page, "<figure>\n{svg}</figure>\n");
    }
    page.push_str("</div>\n<h3>All numbers</h3>\n<div class=\"wide\" tabindex=\"0\">\n<table>\n");
    page.push_str("<thead><tr><th scope=\"col\">policy</th><th scope=\"col\">run</th>");
    for quantity in QUANTITIES {
        let _ = write!(page, "<th scope=\"col\">{}</th>", escaped(quantity.heading));
    }
    page.push_str("</tr></thead>\n");
    for pair in &scenario.pairs {
        push_rows(page, pair);
    }
    page.push_str("</table>\n</div>\n</section>\n");
}

fn push_rows(page: &mut String, pair: &Pair) {
    let policy = escaped(&pair.live.policy);
    let _ = write!(page, "<tbody>\n<tr><th scope=\"rowgroup\" rowspan=\"4\">{policy}</th>");
    push_cells(page, "live", QUANTITIES.iter().map(|quantity| quantity.of(&pair.live)));
    page.push_str("<tr>");
    push_cells(page, "sim", QUANTITIES.iter().map(|quantity| quantity.simulated(pair)));
    page.push_str("<tr>");
    push_cells(page, "±", QUANTITIES.iter().map(|quantity| quantity.spread(pair)));
    page.push_str("<tr class=\"difference\">");
    push_cells(page, "diff.", QUANTITIES.iter().map(|quantity| quantity.difference(pair)));
    page.push_str("</tbody>\n");
}

/// The rest of a row, after what it begins with.
fn push_cells(page: &mut String, kind: &str, cells: impl Iterator<Item = String>) {
    let _ = write!(page, "<td>{kind}</td>");
    for cell in cells {
        let _ = write!(page, "<td>{}</td>", escaped(&cell));
    }
    page.push_str("</tr>\n");
}

impl Quantity {
    fn of(&self, run: &RunResult) -> String {
        fixed((self.value)(run), self.decimals)
    }

    fn simulated(&self, pair: &Pair) -> String {
        fixed(pair.sim(self.value), self.decimals)
    }

    fn spread(&self, pair: &Pair) -> String {
        fixed(pair.spread(self.value), self.decimals)
    }

    fn difference(&self, pair: &Pair) -> String {
        let [live, sim] = pair.both(self.value);
        let (difference, decimals, unit) = match self.difference {
            Difference::Percent => (error_percent(live, sim), 1, "%"),
            Difference::Points => (pair.difference(self.value), 1, " pt"),
            Difference::Plain => (pair.difference(self.value), self.decimals, ""),
        };
        match difference {
            Some(_) => format!("{}{unit}", signed(difference, decimals)),
            None => "-".to_owned(),
        }
    }
}
