//! A grouped bar chart as SVG, by hand.
//!
//! Bars lie, so that names and values are read level. Live is above simulated in each group, and each bar
//! says which it is beside its value: colour only helps. The colours are those of Okabe & Ito, "Color
//! Universal Design", 2008 (blue, sky blue and orange), which people of all colour visions tell apart.
//! Each chart carries its style, for light and dark, under a class of its own.

use std::fmt::Write as _;

use super::{escaped, fixed, shortened};

/// Width of the image, in its own units. Small, so that its text can be read on a phone.
pub(super) const WIDTH: f64 = 480.0;
/// Height of a bar.
const BAR: f64 = 14.0;
/// Height of a group: two bars and the space between groups.
const GROUP: f64 = 2.0 * BAR + 14.0;
/// Space above the first group: the title, then the label of the reference line.
const TOP: f64 = 50.0;
/// Space below the last group: the ticks' labels, then the axis' name.
const BOTTOM: f64 = 44.0;
/// Room for a character of a label, generously.
const CHARACTER: f64 = 6.7;
/// Between a bar, or the reference line, and the label beside it.
const LABEL_GAP: f64 = 4.0;
/// Characters of a policy's name that are shown.
const NAME_LENGTH_MAX: usize = 24;
/// Characters of the title that are shown.
const TITLE_LENGTH_MAX: usize = 54;
/// Values are drawn up to here, so that no coordinate overflows; their labels are not touched.
const VALUE_MAX: f64 = 1e15;

/// How the two bars of a group are named, and their classes.
const BARS: [(&str, &str, &str); 2] = [("live", "live", "#0072B2"), ("sim", "sim", "#E69F00")];

const STYLE: &str = "\
.kvroute-chart{font-family:system-ui,sans-serif;font-size:12px}\
.kvroute-chart text{fill:#222}\
.kvroute-chart .value{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}\
@media screen and (prefers-color-scheme:dark){\
.kvroute-chart text{fill:#ddd}\
.kvroute-chart .value{stroke:#1c1c1c}\
.kvroute-chart .paper{fill:#1c1c1c}\
.kvroute-chart .grid{stroke:#3c3c3c}\
.kvroute-chart .reference{stroke:#ddd}\
.kvroute-chart .live{fill:#56B4E9}}";

/// Live and simulated values of one figure, a group for each policy.
pub(super) struct Chart<'a> {
    pub(super) title: String,
    /// What is drawn, with its unit.
    pub(super) axis: &'static str,
    /// Digits after the point in the values' labels.
    pub(super) decimals: usize,
    pub(super) groups: Vec<Group<'a>>,
    /// What the groups' reference values are.
    pub(super) reference: Option<&'static str>,
}

/// The bars of one policy.
pub(super) struct Group<'a> {
    pub(super) name: &'a str,
    /// Live, simulated; `None` shows as `-` and has no bar.
    pub(super) bars: [Option<f64>; 2],
    /// Where a dashed line crosses the group.
    pub(super) reference: Option<f64>,
}

/// The start of an image: its frame, the style of its class, and `heading` over it, which may be a short form of `title`.
pub(super) fn opening(
    (class, style): (&str, &str),
    font_size: u32,
    height: f64,
    title: &str,
    heading: &str,
) -> String {
    let (title, heading) = (escaped(title), escaped(heading));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"{class}\" role=\"img\" \
         aria-label=\"{title}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"{font_size}\">\n\
         <title>{title}</title>\n<style>{style}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"4\" y=\"17\" font-size=\"14\" font-weight=\"600\">{heading}</text>\n"
    )
}

impl Chart<'_> {
    /// The image. It has no ids, so that several can be put into one page.
    pub(super) fn to_svg(&self) -> String {
        let height = TOP + GROUP * self.groups.len() as f64 + BOTTOM;
        let heading = shortened(&self.title, TITLE_LENGTH_MAX);
        let mut svg = opening(("kvroute-chart", STYLE), 12, height, &self.title, &heading);
        let scale = self.scale();
        self.draw_axis(&mut svg, &scale);
        for (i, group) in self.groups.iter().enumerate() {
            self.draw_group(&mut svg, &scale, TOP + GROUP * i as f64, group);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn scale(&self) -> Scale {
        let values = self.groups.iter().flat_map(|g| g.bars.into_iter().chain([g.reference]));
        let max = values.flatten().fold(0.0, f64::max).min(VALUE_MAX);
        let name_length = self.groups.iter().map(|g| g.name.chars().count()).max().unwrap_or(0);
        let labels = self.groups.iter().flat_map(|g| self.labels(g));
        let label_length = labels.map(|label| label.chars().count()).max().unwrap_or(0);
        let left = 12.0 + CHARACTER * name_length.min(NAME_LENGTH_MAX) as f64;
        let right = WIDTH - 8.0 - CHARACTER * label_length as f64;
        Scale::new(left, right, max)
    }

    /// What stands beside each bar.
    fn labels(&self, group: &Group<'_>) -> [String; 2] {
        let text = |i: usize| format!("{} {}", fixed(group.bars[i], self.decimals), BARS[i].0);
        [text(0), text(1)]
    }

    fn draw_axis(&self, svg: &mut String, scale: &Scale) {
        let bottom = TOP + GROUP * self.groups.len() as f64;
        // Writing to a string cannot fail; so below.
        for tick in scale.ticks() {
            let x = scale.x(tick);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" \
                 stroke=\"#ddd\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11\" text-anchor=\"middle\">{}</text>",
                TOP - 4.0,
                bottom + 14.0,
                fixed(Some(tick), scale.tick_decimals()),
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - 4.0,
            bottom + 34.0,
            escaped(self.axis)
        );
        self.draw_reference_label(svg, scale);
    }

    /// The value stands in the label if it is one for all groups.
    fn draw_reference_label(&self, svg: &mut String, scale: &Scale) {
        let mut values: Vec<_> = self.groups.iter().filter_map(|group| group.reference).collect();
        values.sort_by(f64::total_cmp);
        values.dedup_by_key(|value| fixed(Some(*value), self.decimals));
        let (Some(label), Some(first)) = (self.reference, values.first()) else { return };
        let text = match values.len() {
            1 => format!("{label} {}", fixed(Some(*first), self.decimals)),
            _ => label.to_owned(),
        };
        let x = scale.x(*first);
        let anchor = if x > WIDTH / 2.0 { "end" } else { "start" };
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            TOP - 12.0,
            escaped(&text)
        );
    }

    fn draw_group(&self, svg: &mut String, scale: &Scale, top: f64, group: &Group<'_>) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            scale.left - 6.0,
            top + GROUP / 2.0 + 4.0,
            escaped(&shortened(group.name, NAME_LENGTH_MAX))
        );
        let bar_top = |i: usize| top + (GROUP - 2.0 * BAR) / 2.0 + BAR * i as f64;
        for (i, value) in group.bars.into_iter().enumerate() {
            let Some(value) = value else { continue };
            let (_, class, colour) = BARS[i];
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" \
                 height=\"{:.1}\" fill=\"{colour}\"/>",
                scale.left,
                bar_top(i),
                scale.x(value) - scale.left,
                BAR - 1.0,
            );
        }
        // Above the bars, below the labels.
        if let Some(reference) = group.reference {
            let x = scale.x(reference);
            let _ = writeln!(
                svg,
                "<line class=\"reference\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" \
                 stroke=\"#000\" stroke-width=\"1.5\" stroke-dasharray=\"4 3\"/>",
                top - 4.0,
                top + GROUP - 4.0,
            );
        }
        for (i, label) in self.labels(group).iter().enumerate() {
            let start = scale.x(group.bars[i].unwrap_or(0.0)) + LABEL_GAP;
            let end = start + CHARACTER * label.chars().count() as f64;
            // The line must not strike the number out; beyond it there is as much room as at the axis' end.
            let line = group.reference.map(|reference| scale.x(reference));
            let struck = line.filter(|line| (start - LABEL_GAP..end).contains(line));
            let x = struck.map_or(start, |line| line + LABEL_GAP);
            let _ = writeln!(
                svg,
                "<text class=\"value\" x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11\">{}</text>",
                bar_top(i) + BAR - 3.5,
                escaped(label)
            );
        }
    }
}

/// The distance of ticks over `span`, which is above zero: 1, 2 or 5 times a power of ten, so that there are no more than
/// five of them.
pub(crate) fn tick_step(span: f64) -> f64 {
    let power = 10_f64.powf((span / 4.0).log10().floor());
    [1.0, 2.0, 5.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| span / step <= 5.0)
        .unwrap_or(10.0 * power)
}

/// From a value to a place: linear from zero.
pub(super) struct Scale {
    left: f64,
    right: f64,
    /// Between two ticks: 1, 2 or 5 times a power of ten.
    step: f64,
    /// Ticks above zero.
    steps: u32,
}

impl Scale {
    /// From zero at `left` to the next tick from `max` at `right`.
    pub(super) fn new(left: f64, right: f64, max: f64) -> Self {
        let max = if max < 1e-9 { 1.0 } else { max };
        let step = tick_step(max);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "no more than five steps"
        )]
        let steps = (max / step - 1e-9).ceil().clamp(1.0, 6.0) as u32;
        Self { left, right, step, steps }
    }

    pub(super) fn ticks(&self) -> impl Iterator<Item = f64> {
        (0..=self.steps).map(|i| self.step * f64::from(i))
    }

    /// Digits after the point that tell the ticks apart.
    pub(super) fn tick_decimals(&self) -> usize {
        let is_whole = |decimals: i32| self.step * 10_f64.powi(decimals) > 0.999;
        (0_u8..9).find(|decimals| is_whole(i32::from(*decimals))).unwrap_or(9).into()
    }

    pub(super) fn x(&self, value: f64) -> f64 {
        let share = value / (self.step * f64::from(self.steps));
        self.left + (self.right - self.left) * share.clamp(0.0, 1.0)
    }
}
