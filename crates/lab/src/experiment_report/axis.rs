//! From values to places on an axis, and the ticks that stand there.

use crate::report::tick_step;

/// A linear or logarithmic axis with its ticks.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// What it shows, with its unit.
    pub(super) name: String,
    scale: Scale,
    /// Bounds, in the scale's own measure (logarithms of base 10 for a logarithmic one).
    min: f64,
    max: f64,
    /// Value and label.
    pub(super) ticks: Vec<(f64, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Linear,
    Log,
    /// Of a share above the best: see [`excess`].
    Excess,
}

/// Below this share above the best, equal steps; above it, equal ratios.
const EXCESS_LINEAR: f64 = 0.02;
/// Shares above the best that are named on an axis.
pub(super) const EXCESSES: [(f64, &str); 8] = [
    (0.0, "best"),
    (0.05, "+5 %"),
    (0.2, "+20 %"),
    (1.0, "× 2"),
    (9.0, "× 10"),
    (99.0, "× 100"),
    (999.0, "× 1000"),
    (9_999.0, "× 10,000"),
];

/// Where a share above the best stands, so that 5 % and a thousand times can both be seen: `ln(1 + share / 0.02)`.
pub(super) fn excess(share: f64) -> f64 {
    (1.0 + share.max(0.0) / EXCESS_LINEAR).ln()
}

/// A share above the best to read, short: in percent without the sign, from ten times on as a factor.
pub(super) fn excess_text(share: f64) -> String {
    let times = share + 1.0;
    match times {
        times if times < 9.995 => label(100.0 * share, 0),
        times if times < 9_999.5 => format!("×{}", label(times, 0)),
        times => format!("×{}k", label(times / 1000.0, 0)),
    }
}

/// Milliseconds that are shown as seconds, from here on.
const SECONDS_FROM_MS: f64 = 10_000.0;

/// Unit of times of which the greatest is this, and what milliseconds are to be multiplied by.
pub(super) fn time_unit(most_ms: f64) -> (&'static str, f64) {
    if most_ms >= SECONDS_FROM_MS { ("s", 1e-3) } else { ("ms", 1.0) }
}

/// A time to read, to about three digits: `63 ms`, `7198 ms`, `24.8 s`, `563 s`.
pub(super) fn time_text(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{} ms", label(ms, 1)),
        ms if ms < SECONDS_FROM_MS => format!("{} ms", label(ms, 0)),
        ms => format!("{} s", label(ms / 1000.0, usize::from(ms < 99_950.0))),
    }
}

/// More decades than this, and equal steps hide the small values.
const LINEAR_DECADES_MAX: f64 = 1.5;
/// A bound beyond all that is measured, so that no coordinate overflows.
const VALUE_MAX: f64 = 1e15;

impl Axis {
    /// Linear; zero is on it.
    pub(super) fn from_zero(
        name: impl Into<String>,
        values: impl IntoIterator<Item = f64>,
    ) -> Self {
        let (min, max) = bounds(values).unwrap_or((0.0, 1.0));
        Self::linear_between(name.into(), min.min(0.0), max.max(0.0))
    }

    /// Linear, from about the least to about the greatest value.
    pub(super) fn around(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let (min, max) = bounds(values).unwrap_or((0.0, 1.0));
        Self::linear_between(name.into(), min, max)
    }

    fn linear_between(name: String, min: f64, max: f64) -> Self {
        let span = max - min;
        // One value alone stands in the middle.
        let (min, max) = if span > 1e-9 * max.abs().max(1e-9) {
            (min, max)
        } else {
            let room = if max == 0.0 { 1.0 } else { max.abs() * 0.1 };
            (if min == 0.0 { 0.0 } else { min - room }, max + room)
        };
        let step = tick_step(max - min);
        let (first, last) = ((min / step + 1e-9).floor(), (max / step - 1e-9).ceil());
        let decimals = decimals(step);
        let mut ticks = Vec::new();
        let mut at = first;
        while at <= last + 0.5 && ticks.len() < 20 {
            ticks.push((at * step, label(at * step, decimals)));
            at += 1.0;
        }
        Self { name, scale: Scale::Linear, min: first * step, max: last * step, ticks }
    }

    /// Logarithmic, over the positive values; its name says so.
    pub(super) fn log(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let positive = values.into_iter().filter(|value| *value > 0.0);
        let (min, max) = bounds(positive).unwrap_or((1.0, 10.0));
        let (min, max) = (min.log10(), max.log10());
        let room = (0.04 * (max - min)).max(0.02);
        let (min, max) = (min - room, max + room);
        let name = format!("{} (log scale)", name.into());
        Self { name, scale: Scale::Log, min, max, ticks: log_ticks(min, max) }
    }

    /// Logarithmic if the values are positive and far apart, else from zero.
    pub(super) fn log_if_wide(
        name: impl Into<String>,
        values: impl IntoIterator<Item = f64> + Clone,
    ) -> Self {
        match bounds(values.clone()) {
            Some((min, max)) if min > 0.0 && (max / min).log10() > LINEAR_DECADES_MAX => {
                Self::log(name, values)
            }
            _ => Self::from_zero(name, values),
        }
    }

    /// For shares above the best, from none to the greatest of these.
    pub(super) fn excess(name: impl Into<String>, shares: impl IntoIterator<Item = f64>) -> Self {
        let (_, most) = bounds(shares).unwrap_or((0.0, 1.0));
        let max = excess(most.max(1.0)) * 1.02;
        let ticks = EXCESSES.iter().filter(|(share, _)| excess(*share) <= max);
        Self {
            name: name.into(),
            scale: Scale::Excess,
            min: 0.0,
            max,
            ticks: ticks.map(|(share, label)| (*share, (*label).to_owned())).collect(),
        }
    }

    /// The same axis with ticks at these values alone.
    pub(super) fn with_ticks(mut self, ticks: Vec<(f64, String)>) -> Self {
        self.ticks = ticks;
        self
    }

    /// The same axis without a word about its scale.
    pub(super) fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Share of the way along the axis, `0.0..=1.0`; a value beyond it is at its end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Log if value > 0.0 => value.log10(),
            Scale::Log => self.min,
            Scale::Excess => excess(value),
        };
        ((value - self.min) / (self.max - self.min)).clamp(0.0, 1.0)
    }
}

/// Least and greatest of the finite values.
fn bounds(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.into_iter().filter(|value| value.is_finite());
    finite.fold(None, |bounds, value| {
        let value = value.clamp(-VALUE_MAX, VALUE_MAX);
        let (min, max) = bounds.unwrap_or((value, value));
        Some((f64::min(min, value), f64::max(max, value)))
    })
}

/// Round values between two logarithms: as many as tell the scale, as few as can be read.
fn log_ticks(min: f64, max: f64) -> Vec<(f64, String)> {
    const TICKS_MAX: usize = 7;
    const MANTISSAS: [&[f64]; 4] =
        [&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0], &[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
    #[expect(clippy::cast_possible_truncation, reason = "the logarithm of a number is small")]
    let (first, last) = (min.floor() as i32, max.ceil() as i32);
    let ticks = |mantissas: &[f64], every: i32| -> Vec<f64> {
        let decades = (first..=last).filter(|decade| decade % every == 0);
        decades
            .flat_map(|decade| mantissas.iter().map(move |m| m * 10_f64.powi(decade)))
            .filter(|tick| (min..=max).contains(&tick.log10()))
            .collect()
    };
    let mut found = MANTISSAS.iter().map(|mantissas| ticks(mantissas, 1));
    let ticks = found
        .find(|ticks| ticks.len() <= TICKS_MAX)
        .or_else(|| {
            (2..100).map(|every| ticks(&[1.0], every)).find(|ticks| ticks.len() <= TICKS_MAX)
        })
        .unwrap_or_default();
    // Between two of them where the values are close together: the ends, to three digits.
    let ticks = if ticks.len() < 2 { vec![10_f64.powf(min), 10_f64.powf(max)] } else { ticks };
    ticks.into_iter().map(|tick| (tick, short(tick))).collect()
}

/// Digits after the point that tell multiples of `step` apart.
fn decimals(step: f64) -> usize {
    let is_whole = |decimals: i32| {
        let scaled = step * 10_f64.powi(decimals);
        scaled > 0.999 && (scaled - scaled.round()).abs() < 1e-6
    };
    (0_u8..9).find(|decimals| is_whole(i32::from(*decimals))).unwrap_or(9).into()
}

fn label(value: f64, decimals: usize) -> String {
    crate::columns::fixed(Some(value), decimals)
}

/// A number to about three digits, without zeros at its end.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.1 => 3,
        _ => 4,
    };
    let text = label(value, decimals);
    if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn a_linear_axis_ends_on_round_ticks() {
        let axis = Axis::from_zero("x, ms", [3.0, 47.0]);
        assert_eq!(labels(&axis), ["0", "10", "20", "30", "40", "50"]);
        assert_eq!((axis.at(0.0), axis.at(25.0), axis.at(99.0)), (0.0, 0.5, 1.0));
        let signed = Axis::from_zero("change, %", [-33.0, 12.0]);
        assert_eq!(labels(&signed), ["-40", "-30", "-20", "-10", "0", "10", "20"]);
    }

    #[test]
    fn a_wide_range_is_logarithmic() {
        let axis = Axis::log_if_wide("TTFT, ms", [10.0, 20_000.0]);
        assert_eq!(axis.name, "TTFT, ms (log scale)");
        assert_eq!(labels(&axis), ["10", "30", "100", "300", "1000", "3000", "10000"]);
        assert!((axis.at(10.0 * 2000_f64.sqrt()) - 0.5).abs() < 1e-9);
        assert_eq!(Axis::log_if_wide("TTFT, ms", [10.0, 300.0]).name, "TTFT, ms");
        assert_eq!(Axis::log_if_wide("TTFT, ms", [0.0, 300.0]).name, "TTFT, ms");
    }

    #[test]
    fn five_percent_and_a_thousand_times_are_both_seen() {
        let axis = Axis::excess("above the best", [0.0, 0.05, 5_233.0]);
        assert_eq!(labels(&axis), ["best", "+5 %", "+20 %", "× 2", "× 10", "× 100", "× 1000"]);
        assert!(axis.at(0.05) > 0.08 && axis.at(0.0) == 0.0 && axis.at(5_233.0) > 0.95);
        let texts = [0.0, 0.049, 1.72, 8.9, 11.0, 5_233.91, 1e6].map(excess_text);
        assert_eq!(texts, ["0", "5", "172", "890", "×12", "×5235", "×1000k"]);
        let times = [6.53, 63.2, 9_999.4, 24_848.0, 562_712.0].map(time_text);
        assert_eq!(times, ["6.5 ms", "63 ms", "9999 ms", "24.8 s", "563 s"]);
    }

    #[test]
    fn no_value_spoils_an_axis() {
        for value in [f64::NAN, f64::INFINITY, f64::MAX, -1e300, 0.0, 1e-320, 5.0] {
            for axis in [
                Axis::from_zero("", [value]),
                Axis::around("", [value]),
                Axis::log("", [value]),
                Axis::from_zero("", []),
            ] {
                assert!((1..20).contains(&axis.ticks.len()), "{value}: {axis:?}");
                for at in [value, 0.0, 1.0] {
                    assert!(!axis.at(at).is_nan() || at.is_nan(), "{value}: {axis:?}");
                }
            }
        }
    }
}
