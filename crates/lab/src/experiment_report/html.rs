//! The page.

use std::fmt::Write as _;

use super::Section;
use super::canvas;
use super::tables::Table;
use super::words::Words;
use crate::Manifest;
use crate::report::{escaped, html_opening, unbroken};

/// Figures of a section that the page holds.
const INLINE_MAX: usize = 96;
/// Bytes of figures that the page holds, so that it opens at once.
const INLINE_BYTES_MAX: usize = 4_000_000;
/// Rows of a table that the page holds.
const ROWS_MAX: usize = 50;

const STYLE: &str = "\
body{max-width:78rem}
.question{font-size:1.1rem}
nav ul{columns:14rem;padding-left:1.2rem}
.warnings{border-left:4px solid #D55E00;padding:.1rem .8rem;background:var(--faint)}
.figures{grid-template-columns:repeat(auto-fill,minmax(min(100%,23rem),1fr));gap:1.5rem 1.2rem;align-items:start}
figure{max-width:34rem;overflow-x:auto}
figure svg{min-width:22rem}
figcaption{font-size:.75rem;color:var(--dim);overflow-wrap:anywhere}
h3{font-size:1.05rem;margin:1.6rem 0 .5rem}
:root{--dim:#666}
table{line-height:1.5}
th,td{padding:.15rem .4rem}
table thead th:nth-child(n){text-align:right}
table thead th.name:nth-child(n),td.name{text-align:left}
td:first-of-type:not(.name){text-align:right}
td,th,tbody td:first-of-type,thead th:nth-child(n){vertical-align:bottom}
@media screen and (prefers-color-scheme:dark){:root{--dim:#aaa}}
@media (max-width:30rem){body{padding:.6rem .5rem}nav ul{columns:auto}.warnings{padding:.1rem .5rem}ul{padding-left:1.2rem}}
@media print{nav{display:none}figure svg{min-width:0}table{font-size:5pt}th,td{padding:.1rem .15rem;overflow-wrap:anywhere}figure,tr{break-inside:avoid}h3,section>p{break-after:avoid}\
tbody{break-inside:auto}tbody td{white-space:normal}.figures{grid-template-columns:1fr 1fr}}
";

/// The methods note: term, meaning.
const DEFINITIONS: &[(&str, &str)] = &[
    (
        "TTFT",
        "Time to first token, ms: from the moment the workload wanted to send the request to its first output token, so that \
         waiting to be sent counts. Over completed requests after the warm-up; quantiles are of type 7.",
    ),
    (
        "Hit rate",
        "Prompt tokens found in a prefix cache over all prompt tokens, of completed requests; it is not counted per request. The \
         infinite cache is the bound: one cache that never evicts and is shared by all instances. Two more are of one cache as \
         large as all instances' together. Belady keeps the blocks used again soonest: a closer bound, since no rule for what to \
         keep gives more hits in the order in which the workload sends its requests. A pooled LRU keeps the blocks used last: a \
         yardstick, which separate caches may exceed.",
    ),
    (
        "Imbalance",
        "Largest over mean, over the instances, of the time-mean number of requests in flight. 1 is even; the number of \
         instances is the worst.",
    ),
    ("Goodput", "Requests per second that meet both parts of the SLO. A failed request misses it."),
    (
        "Seeds and intervals",
        "A run's figure (its P95, say) is one observation; a value shown is the mean over the seeds. Intervals are of 95 %, from \
         the bootstrap over seeds, widened for few of them (expanded percentile interval of Hesterberg, The American \
         Statistician 69(4), 2015). Requests of one run depend on each other and are never resampled.",
    ),
    (
        "Against the baseline",
        "Mean over mean, less 1. Policies met the same requests at the same times under the same seed, so that they are compared \
         in pairs. The best of a scene is chosen by its mean over the seeds, and only then compared.",
    ),
    (
        "Missing",
        "What one seed did not measure is missing for the cell (-); it is never zero, nor the mean of the others.",
    ),
];

/// What stands on the page.
pub(super) struct Page<'a> {
    pub(super) title: &'a str,
    pub(super) question: &'a str,
    pub(super) words: &'a Words,
    pub(super) sections: &'a [Section],
    pub(super) tables: &'a [Table],
    /// How the warm-up was chosen; empty for nothing to say.
    pub(super) warm_up: &'a str,
    /// Where the numbers come from, each under its name.
    pub(super) manifests: &'a [(&'a str, &'a Manifest)],
}

/// The whole page.
pub(super) fn page(page: &Page<'_>) -> String {
    let Page { title, question, words, sections, tables, warm_up, manifests } = page;
    let style = format!("{STYLE}{}", canvas::style());
    let mut html = html_opening(title, &style);
    // Writing to a string cannot fail; so below.
    if !question.is_empty() {
        let _ = writeln!(html, "<p class=\"question\">{}</p>", escaped(question));
    }
    if !words.common.is_empty() {
        let _ = writeln!(html, "<p>{}</p>", escaped(&unbroken(&words.common)));
    }
    push_contents(&mut html, sections);
    html.push_str("<h2 id=\"summary\">Summary</h2>\n");
    push_list(&mut html, &words.findings);
    if !words.warnings.is_empty() {
        html.push_str("<div class=\"warnings\">\n<h3 id=\"warnings\">Warnings</h3>\n");
        push_list(&mut html, &words.warnings);
        html.push_str("</div>\n");
    }
    let mut bytes_left = INLINE_BYTES_MAX;
    for section in *sections {
        push_section(&mut html, section, &mut bytes_left);
    }
    html.push_str("<h2 id=\"tables\">Tables</h2>\n");
    for table in *tables {
        push_table(&mut html, table, warm_up);
    }
    html.push_str("<h2 id=\"methods\">Methods</h2>\n<dl>\n");
    if !warm_up.is_empty() {
        let _ = writeln!(html, "<dt>Warm-up</dt><dd>{}</dd>", escaped(warm_up));
    }
    for (term, meaning) in DEFINITIONS {
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escaped(term), escaped(meaning));
    }
    html.push_str("</dl>\n<h2 id=\"origin\">Where the numbers come from</h2>\n");
    for (name, manifest) in *manifests {
        push_manifest(&mut html, name, manifest);
    }
    html.push_str("</body>\n</html>\n");
    html
}

fn push_contents(html: &mut String, sections: &[Section]) {
    html.push_str(
        "<nav aria-label=\"Contents\">\n<ul>\n<li><a href=\"#summary\">Summary</a></li>\n",
    );
    for Section { id, title, .. } in sections {
        let _ = writeln!(html, "<li><a href=\"#{id}\">{}</a></li>", escaped(title));
    }
    for (id, title) in
        [("tables", "Tables"), ("methods", "Methods"), ("origin", "Where the numbers come from")]
    {
        let _ = writeln!(html, "<li><a href=\"#{id}\">{title}</a></li>");
    }
    html.push_str("</ul>\n</nav>\n");
}

fn push_list(html: &mut String, sentences: &[String]) {
    html.push_str("<ul>\n");
    for sentence in sentences {
        let _ = writeln!(html, "<li>{}</li>", escaped(&unbroken(sentence)));
    }
    html.push_str("</ul>\n");
}

fn push_section(html: &mut String, section: &Section, bytes_left: &mut usize) {
    let Section { id, title, intro, groups, omitted } = section;
    let _ = writeln!(
        html,
        "<section>\n<h2 id=\"{id}\">{}</h2>\n<p>{}</p>",
        escaped(title),
        escaped(intro)
    );
    let (mut shown, mut left_out) = (0, 0);
    for (heading, figures) in groups {
        let mut bytes = 0;
        let fits = figures.iter().take(INLINE_MAX - shown).take_while(|figure| {
            bytes += figure.svg.len();
            bytes <= *bytes_left
        });
        // Figures under a heading are shown all or not at all.
        let fitting = match fits.count() {
            some if some < figures.len() && !heading.is_empty() => 0,
            fitting => fitting,
        };
        left_out += figures.len() - fitting;
        shown += fitting;
        if fitting == 0 {
            continue;
        }
        if !heading.is_empty() {
            let _ = writeln!(html, "<h3>{}</h3>", escaped(heading));
        }
        html.push_str("<div class=\"figures\">\n");
        for figure in &figures[..fitting] {
            let svg = canvas::without_style(&figure.svg);
            *bytes_left = bytes_left.saturating_sub(svg.len());
            let _ = write!(
                html,
                "<figure>\n{svg}<figcaption>figures/{}</figcaption>\n</figure>\n",
                escaped(&figure.name)
            );
        }
        html.push_str("</div>\n");
    }
    if left_out > 0 {
        let _ = writeln!(
            html,
            "<p>{left_out} more figures of this section are in the directory figures/, so that this page stays small.</p>"
        );
    }
    if !omitted.is_empty() {
        let _ = writeln!(html, "<p>{}</p>", escaped(omitted));
    }
    html.push_str("</section>\n");
}

fn push_table(html: &mut String, table: &Table, warm_up: &str) {
    let title = match table.name {
        "ranking" => "Policies over all scenes",
        "ranking-parts" => {
            "Policies over a part of the scenes: P95 TTFT over the best one's, geometric mean"
        }
        "best" => "Best policy of each scene",
        "cells" => "All cells",
        "regret" => "Regret of each setting of the weights",
        "losses" => "Surely slower than round-robin or jsq, although it knows the caches",
        "capacity" => "What the baseline bears",
        "warm-up" => "Warm-up",
        "comparison" => "All cells, side by side",
        other => other,
    };
    let _ = writeln!(html, "<h3>{}</h3>", escaped(title));
    if table.name == "warm-up" && !warm_up.is_empty() {
        let _ = writeln!(html, "<p>{}</p>", escaped(warm_up));
    }
    html.push_str(&table.html(ROWS_MAX));
    let more = table.rows.len().saturating_sub(ROWS_MAX);
    let rest = if more > 0 {
        format!("{more} more rows are in tables/{0}.csv; also", table.name)
    } else {
        "Also".to_owned()
    };
    let _ = writeln!(html, "<p>{rest} as tables/{0}.md and tables/{0}.tex.</p>", table.name);
}

fn push_manifest(html: &mut String, name: &str, manifest: &Manifest) {
    let Manifest {
        kvroute_version,
        git_commit,
        command,
        config: _,
        seeds,
        machine,
        inputs,
        started_at,
    } = manifest;
    if !name.is_empty() {
        let _ = writeln!(html, "<h3>{}</h3>", escaped(name));
    }
    let _ = writeln!(html, "<pre><code>{}</code></pre>", escaped(&command.join(" ")));
    let commit =
        git_commit.as_ref().map_or_else(String::new, |commit| format!(", commit {commit}"));
    let seeds: Vec<_> = seeds.iter().map(u64::to_string).collect();
    let cpus = machine.cpus.map_or_else(String::new, |cpus| format!(", {cpus} processors"));
    let mut text = format!(
        "kvroute {kvroute_version}{commit}; seeds {}; {} {}{cpus}",
        seeds.join(", "),
        machine.os,
        machine.arch
    );
    if let Some(at) = started_at {
        let _ = write!(text, "; began {at}");
    }
    let _ =
        writeln!(html, "<p>{}. The whole configuration is in results.json.</p>", escaped(&text));
    if !inputs.is_empty() {
        html.push_str("<ul>\n");
        for input in inputs {
            let _ = writeln!(
                html,
                "<li>{} ({} bytes, SHA-256 {})</li>",
                escaped(&input.path),
                input.bytes,
                escaped(&input.sha256)
            );
        }
        html.push_str("</ul>\n");
    }
}
