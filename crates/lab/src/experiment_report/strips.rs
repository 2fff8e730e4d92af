//! What each instance did over time, one strip for each.

use super::axis::{Axis, short};
use super::canvas::{Anchor, CHARACTER, Canvas, GRID, INK, Look, WIDTH};
use crate::{InstanceTimeline, Timeline};

/// Height of a strip, and of the space to the next.
const STRIP: f64 = 34.0;
const GAP: f64 = 7.0;
/// Left of the strips: the instance's number.
const LEFT: f64 = 44.0;
/// Steps in time that are drawn; what lies between is averaged.
const STEPS_MAX: usize = 150;
/// Instances that are drawn.
pub(super) const INSTANCES_MAX: usize = 16;

const RUNNING: Look = Look::plain(2);
const WAITING: Look = Look::plain(5);
const CACHE: Look = Look::plain(0);

/// The strips of a run.
pub(super) struct Strips {
    pub(super) title: String,
    pub(super) warm_up_s: f64,
    samples: Vec<Samples>,
    instances: usize,
}

/// An instance at some moments.
pub(super) struct Samples {
    /// Time, s; requests that run; that wait; share of the cache in use.
    pub(super) at: Vec<[f64; 4]>,
}

impl Strips {
    pub(super) fn new(title: String, warm_up_s: f64, timeline: &Timeline) -> Self {
        let samples = timeline.instances.iter().take(INSTANCES_MAX);
        let samples = samples.map(|instance| Samples::new(timeline.step_s, instance)).collect();
        Self { title, warm_up_s, samples, instances: timeline.instances.len() }
    }

    pub(super) fn samples(&self) -> &[Samples] {
        &self.samples
    }

    pub(super) fn to_svg(&self) -> String {
        let mut canvas = Canvas::new(&self.title);
        canvas.note(
            "One strip per instance: requests that run (light) and, on top of them, that wait (dark); line: KV cache in \
             use, from 0 to 100 % of the strip's height.",
        );
        if self.instances > self.samples.len() {
            canvas.note(&format!(
                "The first {} of {} instances.",
                self.samples.len(),
                self.instances
            ));
        }
        let all = || self.samples.iter().flat_map(|samples| &samples.at);
        let most = all().map(|[_, running, waiting, _]| running + waiting).fold(0.0, f64::max);
        let x = Axis::from_zero("time, s", all().map(|[time, ..]| *time));
        let right = WIDTH - 8.0;
        let place = |time: f64| LEFT + (right - LEFT) * x.at(time);
        canvas.height += 14.0;
        canvas.text(
            2.0,
            canvas.height - 2.0,
            Anchor::Start,
            &format!("instance; full height of a strip: {} requests", short(most.max(1.0))),
        );
        let top = canvas.height + 4.0;
        let bottom = top + (STRIP + GAP) * self.samples.len() as f64 - GAP;
        for (value, label) in &x.ticks {
            canvas.rule(GRID, (place(*value), top), (place(*value), bottom));
            let x = place(*value).min(WIDTH - 4.0 - CHARACTER * label.chars().count() as f64 / 2.0);
            canvas.text(x, bottom + 14.0, Anchor::Middle, label);
        }
        for (nth, samples) in self.samples.iter().enumerate() {
            let foot = top + (STRIP + GAP) * nth as f64 + STRIP;
            let height = |requests: f64| foot - STRIP * requests / most.max(1.0);
            canvas.rule(GRID, (LEFT, foot), (right, foot));
            canvas.text(LEFT - 8.0, foot - STRIP / 2.0 + 4.0, Anchor::End, &nth.to_string());
            let Some([last, ..]) = samples.at.last() else { continue };
            let outline = |of: &dyn Fn(&[f64; 4]) -> f64| -> Vec<(f64, f64)> {
                let above = samples.at.iter().map(|at| (place(at[0]), height(of(at))));
                [(place(samples.at[0][0]), foot)]
                    .into_iter()
                    .chain(above)
                    .chain([(place(*last), foot)])
                    .collect()
            };
            if samples.at.iter().any(|[_, _, waiting, _]| *waiting > 0.0) {
                canvas.area(WAITING, 0.85, &outline(&|[_, running, waiting, _]| running + waiting));
            }
            canvas.area(RUNNING, 1.0, &outline(&|[_, running, ..]| *running));
            let usage =
                samples.at.iter().map(|[time, _, _, usage]| (place(*time), foot - STRIP * usage));
            let usage: Vec<_> = usage.collect();
            canvas.thin_path(CACHE, &usage);
        }
        if self.warm_up_s > 0.0 {
            let at = place(self.warm_up_s);
            canvas.rule(INK, (at, top - 4.0), (at, bottom));
        }
        canvas.text(f64::midpoint(LEFT, right), bottom + 30.0, Anchor::Middle, &x.name);
        canvas.height = bottom + 38.0;
        canvas.into_svg()
    }
}

impl Samples {
    fn new(step_s: f64, instance: &InstanceTimeline) -> Self {
        let InstanceTimeline { waiting, running, kv_cache_usage } = instance;
        let count = waiting.len().min(running.len()).min(kv_cache_usage.len());
        let each = count.div_ceil(STEPS_MAX).max(1);
        let at = (0..count).step_by(each).map(|from| {
            let to = (from + each).min(count);
            let mean = |sum: f64| sum / (to - from) as f64;
            [
                // The first sample is at one step.
                step_s * (f64::midpoint(from as f64, (to - 1) as f64) + 1.0),
                mean(running[from..to].iter().map(|n| f64::from(*n)).sum()),
                mean(waiting[from..to].iter().map(|n| f64::from(*n)).sum()),
                mean(kv_cache_usage[from..to].iter().sum()),
            ]
        });
        Self { at: at.collect() }
    }
}
