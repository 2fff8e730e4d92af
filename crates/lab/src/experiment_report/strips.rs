//! What the instances did over time under each policy, one strip for each.

use super::axis::{Axis, short};
use super::canvas::{Anchor, CHARACTER, Canvas, GRID, INK, Look, WIDTH};
use crate::{InstanceTimeline, Timeline};

/// Height of a strip, and of the line above it that names it.
const STRIP: f64 = 34.0;
const NAME: f64 = 17.0;
/// Left of the strips.
const LEFT: f64 = 10.0;
/// Steps in time that are drawn; what lies between is averaged.
const STEPS_MAX: usize = 150;
/// Below this share of the most requests in flight a run counts as served, and the rest of its time is not drawn.
const SERVED: f64 = 0.02;
/// Peaks that differ by more than this factor have a scale of square roots.
const WIDE: f64 = 5.0;

const RUNNING: Look = Look::plain(2);
const WAITING: Look = Look::plain(5);
const BUSIEST: Look = Look::plain(0);

/// The strips of a scene, all to one scale.
pub(super) struct Strips {
    pub(super) title: String,
    pub(super) warm_up_s: f64,
    pub(super) policies: Vec<Strip>,
}

/// The instances under one policy.
pub(super) struct Strip {
    pub(super) name: String,
    pub(super) samples: Vec<Sample>,
}

/// All instances at a moment, each figure a mean over the time since the sample before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) time_s: f64,
    /// Requests that run, that wait: mean over the instances.
    pub(super) running: f64,
    pub(super) waiting: f64,
    /// Requests that run or wait at the instance that has the most.
    pub(super) busiest: f64,
    /// Share of the KV cache in use, mean over the instances.
    pub(super) usage: f64,
}

impl Strip {
    pub(super) fn new(name: String, timeline: &Timeline) -> Self {
        let lengths = timeline.instances.iter().map(|instance| {
            let InstanceTimeline { waiting, running, kv_cache_usage } = instance;
            waiting.len().min(running.len()).min(kv_cache_usage.len())
        });
        let count = lengths.min().unwrap_or(0);
        let each = count.div_ceil(STEPS_MAX).max(1);
        let instances = timeline.instances.len() as f64;
        let sample = |from: usize| {
            let to = (from + each).min(count);
            let steps = (to - from) as f64;
            let mut sample = Sample {
                // The first sample is at one step.
                time_s: timeline.step_s * (f64::midpoint(from as f64, (to - 1) as f64) + 1.0),
                running: 0.0,
                waiting: 0.0,
                busiest: 0.0,
                usage: 0.0,
            };
            for instance in &timeline.instances {
                let mean = |of: &[u32]| of.iter().map(|n| f64::from(*n)).sum::<f64>() / steps;
                let (running, waiting) =
                    (mean(&instance.running[from..to]), mean(&instance.waiting[from..to]));
                sample.running += running / instances;
                sample.waiting += waiting / instances;
                sample.busiest = sample.busiest.max(running + waiting);
                let usage: f64 = instance.kv_cache_usage[from..to].iter().sum();
                sample.usage += usage / steps / instances;
            }
            sample
        };
        Self { name, samples: (0..count).step_by(each).map(sample).collect() }
    }
}

impl Strip {
    /// The most requests of an instance at a time.
    fn peak(&self) -> f64 {
        self.samples.iter().map(|sample| sample.busiest).fold(0.0, f64::max)
    }
}

impl Strips {
    pub(super) fn to_svg(&self) -> String {
        let mut canvas = Canvas::new(&self.title);
        let all = || self.policies.iter().flat_map(|strip| &strip.samples);
        let most = all().map(|sample| sample.busiest).fold(1.0, f64::max);
        let peaks = self.policies.iter().map(Strip::peak);
        // Beside one that collapsed, the others would be flat.
        let is_wide = peaks.fold(f64::INFINITY, f64::min) < most / WIDE;
        let scale =
            if is_wide { ", of square roots, so that few are seen beside many" } else { "" };
        canvas.note(&format!(
            "Requests of an instance, mean over the instances: running (light) and, on top of them, waiting (dark). Line: the \
             busiest instance. All strips have the same scale{scale}. Dashed: the end of the warm-up.",
        ));
        let busy = all().filter(|sample| sample.busiest >= SERVED * most);
        let end = busy.map(|sample| sample.time_s).fold(0.0, f64::max);
        let x = Axis::from_zero("time, s", [end]);
        let right = WIDTH - 10.0;
        let place = |time: f64| LEFT + (right - LEFT) * x.at(time);
        let top = canvas.height;
        let bottom = top + (NAME + STRIP) * self.policies.len() as f64;
        for (value, label) in &x.ticks {
            canvas.rule(GRID, (place(*value), top), (place(*value), bottom));
            let half = CHARACTER * label.chars().count() as f64 / 2.0;
            let x = place(*value).clamp(half + 1.0, WIDTH - half - 1.0);
            canvas.text(x, bottom + 14.0, Anchor::Middle, label);
        }
        for (nth, strip) in self.policies.iter().enumerate() {
            let foot = top + (NAME + STRIP) * (nth as f64 + 1.0);
            let height = |requests: f64| {
                let share = requests / most;
                foot - STRIP * if is_wide { share.sqrt() } else { share }
            };
            canvas.rule(GRID, (LEFT, foot), (right, foot));
            let name = crate::columns::shortened(&strip.name, 30);
            let name = format!("{name}: at most {} on an instance", short(strip.peak().round()));
            canvas.text(LEFT, foot - STRIP - 4.0, Anchor::Start, &name);
            let samples = || strip.samples.iter().filter(|sample| sample.time_s <= end);
            let (Some(first), Some(last)) = (samples().next(), samples().next_back()) else {
                continue;
            };
            let outline = |of: &dyn Fn(&Sample) -> f64| -> Vec<(f64, f64)> {
                let above = samples().map(|sample| (place(sample.time_s), height(of(sample))));
                [(place(first.time_s), foot)]
                    .into_iter()
                    .chain(above)
                    .chain([(place(last.time_s), foot)])
                    .collect()
            };
            if samples().any(|sample| sample.waiting > 0.0) {
                canvas.area(WAITING, 0.85, &outline(&|sample| sample.running + sample.waiting));
            }
            canvas.area(RUNNING, 1.0, &outline(&|sample| sample.running));
            let busiest: Vec<_> =
                samples().map(|sample| (place(sample.time_s), height(sample.busiest))).collect();
            canvas.thin_path(BUSIEST, &busiest);
            if self.warm_up_s > 0.0 {
                let at = place(self.warm_up_s);
                canvas.rule(INK, (at, foot - STRIP), (at, foot));
            }
        }
        canvas.text(f64::midpoint(LEFT, right), bottom + 30.0, Anchor::Middle, &x.name);
        canvas.height = bottom + 38.0;
        canvas.into_svg()
    }
}
