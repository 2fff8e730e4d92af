//! Maps over two settings: the weights of cache and load, and the factors of a workload.
//!
//! With `p95` the mean P95 TTFT over the seeds of a cell and `best` the least of a scene's settings:
//!
//! ```text
//! regret = p95 / best - 1
//! gain   = 1 - p95(best cache-aware policy) / p95(best load-only policy)
//! ```
//!
//! The best of each is chosen by its mean over the seeds and only then compared, seed by seed. Where one tile of a map
//! holds several scenes (those that differ in a third factor), its gain is the mean of theirs, seed by seed.

use std::collections::{BTreeMap, BTreeSet};

use super::axis::{Axis, excess_text, short};
use super::canvas::Look;
use super::groups::{Grid, GridCell, Quantity, Scene, is_near};
use super::heat::{Colours, Emphasis, Heat, Tile};
use super::lines::{Line, Lines, Panel, Point};
use super::tables::csv_text;
use super::{Drawn, optional};
use crate::columns::fixed;
use crate::report::{signed, slug};
use crate::{Estimate, mean};

/// Name of the load as a factor.
const UTILISATION: &str = "utilisation";
/// Settings that make a map, at least.
const SETTINGS_MIN: usize = 4;

/// Indices of alpha and beta.
pub(super) type Setting = (usize, usize);

/// The settings of one policy's two weights, over scenes.
pub(super) struct AlphaBeta {
    /// Its other settings; empty if all maps have the same.
    pub(super) variant: String,
    /// Ascending.
    pub(super) alphas: Vec<f64>,
    pub(super) betas: Vec<f64>,
    /// Indices of the scenes that have it.
    pub(super) scenes: Vec<usize>,
    /// For each of them.
    pub(super) regrets: Vec<BTreeMap<Setting, Regret>>,
    /// The largest regret over all scenes, of the settings that were measured in each.
    pub(super) worst: BTreeMap<Setting, f64>,
}

/// What a setting costs in a scene.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Regret {
    pub(super) p95_ms: f64,
    /// Share above the best setting of the scene.
    pub(super) share: f64,
    pub(super) hit_percent: Option<f64>,
}

impl AlphaBeta {
    /// One for each variant of the policy.
    pub(super) fn all(grid: &Grid<'_>) -> Vec<Self> {
        let mut variants: BTreeMap<String, BTreeMap<usize, Vec<Measured>>> = BTreeMap::new();
        for cell in &grid.cells {
            let Some(weights) = cell.alpha_beta() else { continue };
            let Some(p95_ms) = cell.mean(Quantity::TtftP95) else { continue };
            let hit_percent = cell.mean(Quantity::HitRate);
            let of_variant = variants.entry(cell.variant()).or_default();
            of_variant.entry(cell.scene).or_default().push(Measured {
                weights,
                p95_ms,
                hit_percent,
            });
        }
        for scenes in variants.values_mut() {
            scenes.retain(|_, measured| measured.len() >= SETTINGS_MIN);
        }
        variants.retain(|_, scenes| !scenes.is_empty());
        let is_one = variants.len() == 1;
        let map =
            |(variant, scenes)| Self::new(if is_one { String::new() } else { variant }, &scenes);
        variants.into_iter().map(map).collect()
    }

    fn new(variant: String, measured: &BTreeMap<usize, Vec<Measured>>) -> Self {
        let all = || measured.values().flatten();
        let alphas = ascending(all().map(|measured| measured.weights.0));
        let betas = ascending(all().map(|measured| measured.weights.1));
        let setting =
            |(alpha, beta): (f64, f64)| Some((position(&alphas, alpha)?, position(&betas, beta)?));
        let of_scene = |measured: &Vec<Measured>| -> BTreeMap<Setting, Regret> {
            let best = measured.iter().map(|m| m.p95_ms).fold(f64::INFINITY, f64::min);
            let regret = |m: &Measured| {
                let share = if best > 0.0 { m.p95_ms / best - 1.0 } else { 0.0 };
                let regret = Regret { p95_ms: m.p95_ms, share, hit_percent: m.hit_percent };
                Some((setting(m.weights)?, regret))
            };
            measured.iter().filter_map(regret).collect()
        };
        let regrets: Vec<_> = measured.values().map(of_scene).collect();
        let mut worst: BTreeMap<Setting, f64> = BTreeMap::new();
        if let Some(first) = regrets.first() {
            for setting in first.keys() {
                let of_all = regrets.iter().map(|of_scene| Some(of_scene.get(setting)?.share));
                let largest = of_all.largest_of_all();
                worst.extend(largest.map(|largest| (*setting, largest)));
            }
        }
        Self { variant, scenes: measured.keys().copied().collect(), regrets, worst, alphas, betas }
    }

    /// Settings that are near the best in every scene.
    pub(super) fn robust(&self) -> Vec<Setting> {
        let near = self.worst.iter().filter(|(_, worst)| is_near(**worst));
        near.map(|(setting, _)| *setting).collect()
    }

    /// The setting whose worst regret is least, and that regret.
    pub(super) fn safest(&self) -> Option<(Setting, f64)> {
        let all = self.worst.iter().map(|(setting, worst)| (*setting, *worst));
        all.min_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)))
    }

    pub(super) fn weights(&self, setting: Setting) -> String {
        let (alpha, beta) = (self.alphas[setting.0], self.betas[setting.1]);
        format!("α {} β {}", short(alpha), short(beta))
    }
}

/// A setting in a scene.
#[derive(Clone, Copy)]
struct Measured {
    weights: (f64, f64),
    p95_ms: f64,
    hit_percent: Option<f64>,
}

/// The largest of all, if there are all.
trait Largest {
    fn largest_of_all(self) -> Option<f64>;
}

impl<I: Iterator<Item = Option<f64>>> Largest for I {
    fn largest_of_all(mut self) -> Option<f64> {
        self.try_fold(0.0, |largest: f64, value| Some(largest.max(value?)))
    }
}

/// One map of P95 TTFT for each scene.
pub(super) fn alpha_beta(grid: &Grid<'_>, maps: &[AlphaBeta]) -> Vec<Drawn> {
    let mut drawn = Vec::new();
    for map in maps {
        for (index, regrets) in map.scenes.iter().zip(&map.regrets) {
            let scene = &grid.scenes[*index];
            drawn.push(map_of_scene(map, scene, regrets));
        }
    }
    drawn
}

fn map_of_scene(map: &AlphaBeta, scene: &Scene<'_>, regrets: &BTreeMap<Setting, Regret>) -> Drawn {
    let least = regrets.values().map(|regret| regret.share).fold(f64::INFINITY, f64::min);
    let tile = |(setting, regret): (&Setting, &Regret)| Tile {
        x: setting.0,
        y: setting.1,
        value: Some(regret.share),
        text: tile_time(regret.p95_ms),
        emphasis: if regret.share <= least {
            Emphasis::Best
        } else if is_near(regret.share) {
            Emphasis::Near
        } else {
            Emphasis::None
        },
    };
    let variant = of_variant(map);
    let is_long = regrets.values().any(|regret| regret.p95_ms >= TILE_SECONDS_FROM_MS);
    let unit = if is_long { "ms, or in s where it says s" } else { "ms" };
    let heat = Heat {
        title: format!("P95 TTFT of load-cache by its weights, {}{variant}", scene.name),
        note: format!(
            "Each tile: one setting, its mean over seeds in {unit}. ★ is the best, framed is within 5 % of it."
        ),
        value: "Colour: P95 TTFT above that of the best setting here".to_owned(),
        x: ("α, weight of the cache".to_owned(), map.alphas.clone()),
        y: ("β, weight of the load".to_owned(), map.betas.clone()),
        cells: regrets.iter().map(tile).collect(),
        colours: Colours::Excess,
    };
    let rows = regrets.iter().map(|(setting, regret)| {
        vec![
            map.alphas[setting.0].to_string(),
            map.betas[setting.1].to_string(),
            regret.p95_ms.to_string(),
            (100.0 * regret.share).to_string(),
            optional(regret.hit_percent),
        ]
    });
    let header = ["alpha", "beta", "ttft_p95_ms", "regret_percent", "hit_rate_percent"];
    Drawn {
        name: format!("alpha-beta-{}{}", scene.slug, slug_of_variant(map)),
        svg: heat.to_svg(),
        csv: csv_text(header.map(str::to_owned).to_vec(), rows),
    }
}

/// Milliseconds that a tile says in seconds, from here on.
const TILE_SECONDS_FROM_MS: f64 = 10_000.0;

/// A time in at most four characters, so that it fits into a tile: `63`, `7198`, `25s`, `563s`.
fn tile_time(ms: f64) -> String {
    if ms < TILE_SECONDS_FROM_MS - 0.5 {
        fixed(Some(ms), 0)
    } else {
        format!("{}s", fixed(Some(ms / 1000.0), 0))
    }
}

/// The largest regret of each setting over all scenes, if there are several.
pub(super) fn worst_regret(map: &AlphaBeta) -> Option<Drawn> {
    if map.scenes.len() < 2 || map.worst.is_empty() {
        return None;
    }
    let safest = map.safest().map(|(setting, _)| setting);
    let tile = |(setting, worst): (&Setting, &f64)| Tile {
        x: setting.0,
        y: setting.1,
        value: Some(*worst),
        text: excess_text(*worst),
        emphasis: if Some(*setting) == safest {
            Emphasis::Best
        } else if is_near(*worst) {
            Emphasis::Near
        } else {
            Emphasis::None
        },
    };
    let heat = Heat {
        title: format!("Worst regret of load-cache over all workloads{}", of_variant(map)),
        note: format!(
            "Each tile: by how many percent (from × 10 on: how many times) the P95 TTFT of a setting is above that of the best \
             one, in the one of {} workloads and loads where that is most. ★ is the safest setting; framed (if any) are those \
             within 5 % everywhere.",
            map.scenes.len()
        ),
        value: "Colour: P95 TTFT above that of the best setting, at worst".to_owned(),
        x: ("α, weight of the cache".to_owned(), map.alphas.clone()),
        y: ("β, weight of the load".to_owned(), map.betas.clone()),
        cells: map.worst.iter().map(tile).collect(),
        colours: Colours::Excess,
    };
    let rows = map.worst.iter().map(|(setting, worst)| {
        let (alpha, beta) = (map.alphas[setting.0], map.betas[setting.1]);
        vec![alpha.to_string(), beta.to_string(), (100.0 * worst).to_string()]
    });
    let header = ["alpha", "beta", "regret_worst_percent"];
    Some(Drawn {
        name: format!("alpha-beta-worst-regret{}", slug_of_variant(map)),
        svg: heat.to_svg(),
        csv: csv_text(header.map(str::to_owned).to_vec(), rows),
    })
}

pub(super) fn of_variant(map: &AlphaBeta) -> String {
    if map.variant.is_empty() { String::new() } else { format!(" ({})", map.variant) }
}

pub(super) fn slug_of_variant(map: &AlphaBeta) -> String {
    if map.variant.is_empty() { String::new() } else { format!("-{}", slug(&map.variant)) }
}

/// What cache-aware routing gains in a scene.
pub(super) struct Gain<'a> {
    /// Index of the scene.
    pub(super) scene: usize,
    /// Its factors, the load among them.
    pub(super) factors: BTreeMap<&'a str, f64>,
    /// The best of each.
    pub(super) load_only: &'a str,
    pub(super) cache_aware: &'a str,
    /// Share, with its interval.
    pub(super) share: Estimate,
    /// Share, by seed.
    by_seed: BTreeMap<u64, f64>,
}

/// The gain in each scene that has factors, and policies of both sorts.
pub(super) fn gains<'a>(grid: &Grid<'a>) -> Vec<Gain<'a>> {
    let with_factors = grid.scenes.iter().enumerate();
    with_factors
        .filter(|(_, scene)| !scene.cell.factors.is_empty())
        .filter_map(|(index, scene)| gain(grid, index, scene))
        .collect()
}

fn gain<'a>(grid: &Grid<'a>, index: usize, scene: &Scene<'a>) -> Option<Gain<'a>> {
    let best = |is_load_only: bool| {
        let of_sort = grid.cells_of(scene).filter(|cell| cell.is_load_only() == is_load_only);
        Grid::least(of_sort, Quantity::TtftP95)
    };
    let (load_only, cache_aware): (&GridCell<'a>, &GridCell<'a>) = (best(true)?, best(false)?);
    let relative = cache_aware.against(load_only, Quantity::TtftP95)?.relative?;
    let mut by_seed = BTreeMap::new();
    for (aware, load) in cache_aware.pairs(load_only) {
        let of = |run: &crate::ExperimentRun| Quantity::TtftP95.of(&run.result);
        by_seed.insert(aware.result.seed, 1.0 - of(aware)? / of(load)?);
    }
    let mut factors: BTreeMap<&str, f64> =
        scene.cell.factors.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    if let Some(share) = scene.cell.load.of_capacity {
        factors.entry(UTILISATION).or_insert(share);
    }
    Some(Gain {
        scene: index,
        factors,
        load_only: &load_only.cell.policy,
        cache_aware: &cache_aware.cell.policy,
        share: Estimate {
            value: -relative.value,
            interval: relative.interval.map(|(low, high)| (-high, -low)),
            ..relative
        },
        by_seed,
    })
}

/// The gain of some scenes together: the mean of theirs, seed by seed.
fn gain_of_all(gains: &[&Gain<'_>]) -> Option<Estimate> {
    if let [gain] = gains {
        return Some(gain.share);
    }
    let first = gains.first()?;
    let of_seed = |seed: &u64| -> Option<f64> {
        let sum: f64 = gains.iter().map(|gain| gain.by_seed.get(seed)).sum::<Option<_>>()?;
        Some(sum / gains.len() as f64)
    };
    let means: Vec<f64> = first.by_seed.keys().filter_map(of_seed).collect();
    mean(&means)
}

/// Names of the factors that vary.
pub(super) fn varied<'a>(gains: &[Gain<'a>]) -> Vec<&'a str> {
    let mut values: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for gain in gains {
        for (name, value) in &gain.factors {
            values.entry(name).or_default().insert(value.to_bits());
        }
    }
    values.into_iter().filter(|(_, values)| values.len() > 1).map(|(name, _)| name).collect()
}

/// A map of the gain for each pair of factors.
pub(super) fn factor_maps(gains: &[Gain<'_>]) -> Vec<Drawn> {
    let names = varied(gains);
    let pairs = names
        .iter()
        .enumerate()
        .flat_map(|(nth, x)| names[nth + 1..].iter().map(move |y| (*x, *y)));
    pairs.filter_map(|(x, y)| factor_map(gains, x, y)).collect()
}

fn factor_map(gains: &[Gain<'_>], x: &str, y: &str) -> Option<Drawn> {
    let of =
        |name: &str| ascending(gains.iter().filter_map(|gain| gain.factors.get(name).copied()));
    let (xs, ys) = (of(x), of(y));
    let mut places: BTreeMap<Setting, Vec<&Gain<'_>>> = BTreeMap::new();
    for gain in gains {
        let at = |name: &str, values: &[f64]| position(values, *gain.factors.get(name)?);
        if let Some(setting) = at(x, &xs).zip(at(y, &ys)) {
            places.entry(setting).or_default().push(gain);
        }
    }
    let estimates: BTreeMap<Setting, (Estimate, usize)> = places
        .iter()
        .filter_map(|(setting, gains)| Some((*setting, (gain_of_all(gains)?, gains.len()))))
        .collect();
    // Two factors of different workloads have no point in common.
    let several = estimates.values().map(|(_, scenes)| *scenes).max()?;
    let tile = |(setting, (gain, _)): (&Setting, &(Estimate, usize))| {
        let text = if gain.value < -9.0 {
            excess_text(-gain.value)
        } else {
            signed(Some(100.0 * gain.value), 0)
        };
        Tile {
            x: setting.0,
            y: setting.1,
            value: gain.is_nonzero().then_some(gain.value),
            text: if gain.is_nonzero() { text } else { format!("({text})") },
            emphasis: Emphasis::None,
        }
    };
    let averaged = if several > 1 {
        format!(" A tile is the mean over {several} points that differ in the other factors.")
    } else {
        String::new()
    };
    let heat = Heat {
        title: format!("Gain of cache-aware routing by {x} and {y}"),
        note: format!(
            "Each tile: by how many percent the best cache-aware policy lowers the P95 TTFT of the best load-only one. \
             Blue (+) is a gain, orange (-) a loss (× n: n times as slow); grey, in brackets: no difference, the 95 % interval \
             includes 0.{averaged}"
        ),
        value: "Colour: P95 TTFT, cache-aware against load-only".to_owned(),
        x: (x.to_owned(), xs.clone()),
        y: (y.to_owned(), ys.clone()),
        cells: estimates.iter().map(tile).collect(),
        colours: Colours::Gain,
    };
    let rows = estimates.iter().map(|(setting, (gain, scenes))| {
        let mut row = vec![xs[setting.0].to_string(), ys[setting.1].to_string()];
        row.extend(percent_fields(gain));
        row.push(scenes.to_string());
        row
    });
    let header = [x, y, "gain_percent", "gain_percent_low", "gain_percent_high", "points"];
    Some(Drawn {
        name: format!("gain-{}-{}", slug(x), slug(y)),
        svg: heat.to_svg(),
        csv: csv_text(header.map(str::to_owned).to_vec(), rows),
    })
}

/// The gain over each factor.
pub(super) fn factor_lines(gains: &[Gain<'_>]) -> Vec<Drawn> {
    varied(gains).into_iter().map(|name| factor_line(gains, name)).collect()
}

fn factor_line(gains: &[Gain<'_>], name: &str) -> Drawn {
    let values = ascending(gains.iter().filter_map(|gain| gain.factors.get(name).copied()));
    let estimates: Vec<(f64, Estimate, usize)> = values
        .iter()
        .filter_map(|value| {
            let same = |gain: &&Gain<'_>| gain.factors.get(name) == Some(value);
            let of_value: Vec<_> = gains.iter().filter(same).collect();
            Some((*value, gain_of_all(&of_value)?, of_value.len()))
        })
        .collect();
    let percent = |(low, high): (f64, f64)| (100.0 * low, 100.0 * high);
    let line = Line {
        name: String::new(),
        look: Look::plain(6),
        points: estimates
            .iter()
            .map(|(value, gain, _)| Point {
                x: *value,
                y: Some(100.0 * gain.value),
                interval: gain.interval.map(percent),
            })
            .collect(),
    };
    let y =
        Axis::from_zero("gain: P95 TTFT less than the best load-only policy's, %", line.extent());
    let spread = values.first().zip(values.last());
    let x = match spread {
        Some((first, last)) if *first > 0.0 && last / first >= 8.0 => {
            Axis::log(name, values.iter().copied())
        }
        _ => Axis::around(name, values.iter().copied()),
    };
    let x = x.with_ticks(values.iter().map(|value| (*value, short(*value))).collect());
    let mut panel = Panel::new(y, vec![line]);
    panel.rules.push(0.0);
    let several = estimates.iter().map(|(.., scenes)| *scenes).max().unwrap_or(1);
    let lines = Lines::new(
        format!("Gain of cache-aware routing by {name}"),
        format!(
            "P95 TTFT, mean over {several} points that differ in the other factors; above the dashed line cache-aware routing \
             is faster. Bars: 95 % intervals over seeds."
        ),
        x,
        vec![panel],
    );
    let rows = estimates.iter().map(|(value, gain, scenes)| {
        let mut row = vec![value.to_string()];
        row.extend(percent_fields(gain));
        row.push(scenes.to_string());
        row
    });
    let header = [name, "gain_percent", "gain_percent_low", "gain_percent_high", "points"];
    Drawn {
        name: format!("gain-{}", slug(name)),
        svg: lines.to_svg(),
        csv: csv_text(header.map(str::to_owned).to_vec(), rows),
    }
}

/// Value and bounds of a share, in percent, as fields of CSV.
fn percent_fields(share: &Estimate) -> [String; 3] {
    let (low, high) = share.interval.unzip();
    [Some(share.value), low, high].map(|value| optional(value.map(|value| 100.0 * value)))
}

/// Different values in ascending order.
fn ascending(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    values
}

fn position(ascending: &[f64], value: f64) -> Option<usize> {
    ascending.binary_search_by(|other| other.total_cmp(&value)).ok()
}
