//! Drawing: text, lines and marks as SVG, and how a policy looks.
//!
//! Colours are those of Okabe & Ito, "Color Universal Design", 2008; dashes and marks tell apart what they do not. A
//! policy has the same look in every figure. Text is in the ink of the page, never in a colour.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::report::escaped;

use super::groups::Grid;

/// Width of a figure, in its own units. That of a phone, so that its text can be read there.
pub(super) const WIDTH: f64 = 400.0;
/// Room for a character of a label, generously.
pub(super) const CHARACTER: f64 = 6.5;
/// Size of the text of a figure.
const FONT: f64 = 12.0;
/// Characters of a line of the title.
const TITLE_LENGTH: usize = 46;
/// Characters of a line of explanation.
const NOTE_LENGTH: usize = 63;
/// Height of a line of the title.
const TITLE_LINE: f64 = 17.0;

/// Class of every figure.
const CLASS: &str = "kvroute-figure";
/// Class of a line that tells where the values are.
pub(super) const GRID: &str = "grid";
/// Class of what is as dark as the text.
pub(super) const INK: &str = "ink";
/// Class of an interval over a bar.
pub(super) const WHISKER: &str = "whisker";
/// Class of a Pareto front.
pub(super) const FRONT: &str = "front";
/// Class of what explains.
pub(super) const FAINT: &str = "faint";

/// On light and on dark paper. The first six are the policies', the others for names that are not known.
const COLOURS: [(&str, &str); 8] = [
    ("#4d4d4d", "#c8c8c8"),
    ("#E69F00", "#E69F00"),
    ("#56B4E9", "#56B4E9"),
    ("#CC79A7", "#CC79A7"),
    ("#009E73", "#2BC79A"),
    ("#D55E00", "#F0833A"),
    ("#0072B2", "#4FA3E0"),
    ("#8C6D1F", "#F0E442"),
];
const KINDS: [&str; 6] =
    ["round-robin", "jsq", "p2c", "session-affinity", "prefix-affinity", "load-cache"];
const DASHES: [&str; 4] = ["", "6 3", "2 3", "9 3 2 3"];

/// How something is drawn that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// Which colour and mark.
    pub(super) colour: usize,
    /// Which dashes.
    pub(super) dash: usize,
}

impl Look {
    pub(super) const fn plain(colour: usize) -> Self {
        Self { colour: colour % COLOURS.len(), dash: 0 }
    }

    /// The `nth` of things that have no look of their own.
    pub(super) const fn nth(nth: usize) -> Self {
        // The strong colours first.
        const ORDER: [usize; 8] = [6, 5, 4, 1, 3, 2, 0, 7];
        Self { colour: ORDER[nth % ORDER.len()], dash: nth / ORDER.len() % DASHES.len() }
    }
}

/// How each policy looks.
#[derive(Debug, Default)]
pub(super) struct Looks {
    by_label: BTreeMap<String, Look>,
}

impl Looks {
    /// A kind has a colour; its settings have dashes, the one with its defaults none.
    pub(super) fn new(grid: &Grid<'_>) -> Self {
        let mut labels: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for cell in &grid.cells {
            let of_kind = labels.entry(cell.kind).or_default();
            let label = cell.cell.policy.as_str();
            // A grid of a policy's settings is not drawn as lines: no need to know them all.
            if of_kind.len() < 64 && !of_kind.contains(&label) {
                of_kind.push(label);
            }
        }
        let mut unknown = 0;
        let mut by_label = BTreeMap::new();
        for (kind, mut of_kind) in labels {
            let colour = KINDS.iter().position(|known| *known == kind).unwrap_or_else(|| {
                unknown += 1;
                KINDS.len() + (unknown - 1) % (COLOURS.len() - KINDS.len())
            });
            of_kind.sort_by_key(|label| *label != kind);
            for (nth, label) in of_kind.into_iter().enumerate() {
                let dash = nth % DASHES.len();
                by_label.insert(label.to_owned(), Look { colour, dash });
            }
        }
        Self { by_label }
    }

    /// How a policy looks, by its label.
    pub(super) fn of(&self, label: &str) -> Look {
        let kind = label.split(':').next().unwrap_or_default();
        let of_kind = || KINDS.iter().position(|known| *known == kind).map(Look::plain);
        self.by_label.get(label).copied().or_else(of_kind).unwrap_or(Look::plain(6))
    }
}

/// A figure that is being drawn, from top to bottom.
pub(super) struct Canvas {
    title: String,
    body: String,
    /// Height of what is drawn so far.
    pub(super) height: f64,
}

/// Which side of its place a text stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    /// With the title, in as many lines as it takes.
    pub(super) fn new(title: &str) -> Self {
        let mut canvas = Self { title: title.to_owned(), body: String::new(), height: 0.0 };
        for line in wrapped(title, TITLE_LENGTH) {
            canvas.height += TITLE_LINE;
            let _ = writeln!(
                canvas.body,
                "<text x=\"2\" y=\"{}\" font-size=\"13.5\" font-weight=\"600\">{}</text>",
                canvas.height - 4.0,
                escaped(&line)
            );
        }
        canvas.height += 4.0;
        canvas
    }

    /// A sentence of explanation, in as many lines as it takes.
    pub(super) fn note(&mut self, text: &str) {
        for line in wrapped(text, NOTE_LENGTH) {
            self.height += 14.0;
            // Writing to a string cannot fail; so below.
            let _ = writeln!(
                self.body,
                "<text class=\"{FAINT}\" x=\"2\" y=\"{:.1}\" font-size=\"11.5\">{}</text>",
                self.height - 3.0,
                escaped(&line)
            );
        }
        self.height += 2.0;
    }

    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, text: &str) {
        self.styled_text(x, y, anchor, "", text);
    }

    /// With more attributes.
    pub(super) fn styled_text(
        &mut self,
        x: f64,
        y: f64,
        anchor: Anchor,
        attributes: &str,
        text: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let space = if attributes.is_empty() { "" } else { " " };
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\"{anchor}{space}{attributes}>{}</text>",
            escaped(text)
        );
    }

    /// A line of a class: [`GRID`], [`INK`], [`WHISKER`] or [`FRONT`].
    pub(super) fn rule(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let (stroke, more) = match class {
            GRID => ("#ddd", ""),
            INK => ("#222", " stroke-dasharray=\"5 3\" stroke-width=\"1.3\""),
            WHISKER => ("#222", " stroke-width=\"1.3\""),
            _ => ("#888", " stroke-dasharray=\"4 3\""),
        };
        let _ = writeln!(
            self.body,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" \
             stroke=\"{stroke}\"{more}/>"
        );
    }

    /// A line without class: a leader, a whisker.
    pub(super) fn stroke(
        &mut self,
        look: Look,
        width: f64,
        (x1, y1): (f64, f64),
        (x2, y2): (f64, f64),
    ) {
        let (class, colour) = (look.colour, COLOURS[look.colour].0);
        let _ = writeln!(
            self.body,
            "<line class=\"s{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" \
             stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        );
    }

    /// A line through the points, with the dashes of its look.
    pub(super) fn path(&mut self, look: Look, points: &[(f64, f64)]) {
        self.wide_path(look, 1.8, points);
    }

    /// The same, thin.
    pub(super) fn thin_path(&mut self, look: Look, points: &[(f64, f64)]) {
        self.wide_path(look, 1.0, points);
    }

    fn wide_path(&mut self, look: Look, width: f64, points: &[(f64, f64)]) {
        if points.len() < 2 {
            return;
        }
        let dash = match DASHES[look.dash] {
            "" => String::new(),
            dash => format!(" stroke-dasharray=\"{dash}\""),
        };
        let (class, colour) = (look.colour, COLOURS[look.colour].0);
        let _ = writeln!(
            self.body,
            "<polyline class=\"s{class}\" points=\"{}\" fill=\"none\" stroke=\"{colour}\" \
             stroke-width=\"{width}\" stroke-linejoin=\"round\"{dash}/>",
            places(points)
        );
    }

    /// A filled outline.
    pub(super) fn area(&mut self, look: Look, opacity: f64, points: &[(f64, f64)]) {
        let (class, colour) = (look.colour, COLOURS[look.colour].0);
        let _ = writeln!(
            self.body,
            "<polygon class=\"f{class}\" points=\"{}\" fill=\"{colour}\" fill-opacity=\"{opacity}\"/>",
            places(points)
        );
    }

    pub(super) fn bar(&mut self, look: Look, opacity: f64, (x, y): (f64, f64), (w, h): (f64, f64)) {
        let (class, colour) = (look.colour, COLOURS[look.colour].0);
        let _ = writeln!(
            self.body,
            "<rect class=\"f{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
             fill=\"{colour}\" fill-opacity=\"{opacity}\"/>",
            w.max(0.0),
            h.max(0.0)
        );
    }

    /// A cell of a map, in a colour of its own.
    pub(super) fn tile(&mut self, (x, y): (f64, f64), (w, h): (f64, f64), colour: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{colour}\"/>"
        );
    }

    /// The outline of a cell of a map.
    pub(super) fn outline(&mut self, (x, y): (f64, f64), (w, h): (f64, f64), width: f64) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"none\" \
             stroke=\"#000\" stroke-width=\"{width}\"/>"
        );
    }

    /// The mark of a look: one shape for each colour.
    pub(super) fn mark(&mut self, look: Look, (x, y): (f64, f64), r: f64) {
        let (class, colour) = (look.colour, COLOURS[look.colour].0);
        let polygon = |corners: &[(f64, f64)]| {
            let corners: Vec<_> = corners.iter().map(|(dx, dy)| (x + r * dx, y + r * dy)).collect();
            format!("<polygon points=\"{}\"", places(&corners))
        };
        let shape = match look.colour {
            1 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            2 => polygon(&[(0.0, -1.2), (1.1, 0.9), (-1.1, 0.9)]),
            3 => polygon(&[(0.0, 1.2), (1.1, -0.9), (-1.1, -0.9)]),
            4 => polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
            7 => polygon(&[(-1.2, -0.5), (1.2, -0.5), (1.2, 0.5), (-1.2, 0.5)]),
            _ => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\""),
        };
        let _ = writeln!(self.body, "{shape} class=\"f{class}\" fill=\"{colour}\"/>");
    }

    /// The image that stands for itself: with its style, for light and dark.
    pub(super) fn into_svg(self) -> String {
        let Self { title, body, height } = self;
        let title = escaped(&title);
        let style = style();
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"{CLASS}\" role=\"img\" \
             aria-label=\"{title}\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"{FONT}\" fill=\"#222\">\n\
             <style>{style}</style>\n\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"#fff\"/>\n{body}</svg>\n"
        )
    }
}

/// An image without its style, for a page that has it once.
pub(super) fn without_style(svg: &str) -> String {
    match (svg.find("<style>"), svg.find("</style>\n")) {
        (Some(start), Some(end)) => {
            format!("{}{}", &svg[..start], &svg[end + "</style>\n".len()..])
        }
        _ => svg.to_owned(),
    }
}

/// The style of figures. Light is in the attributes too, for programs that do not read styles.
pub(super) fn style() -> String {
    let mut dark = String::new();
    for (index, (_, on_dark)) in COLOURS.iter().enumerate() {
        let _ = write!(
            dark,
            ".{CLASS} .s{index}{{stroke:{on_dark}}}.{CLASS} .f{index}{{fill:{on_dark}}}"
        );
    }
    format!(
        "@media screen and (prefers-color-scheme:dark){{\
         .{CLASS} text{{fill:#ddd}}.{CLASS} .{FAINT}{{fill:#aaa}}.{CLASS} .on-light{{fill:#111}}\
         .{CLASS} .on-dark{{fill:#fff}}.{CLASS} .paper{{fill:#1c1c1c}}.{CLASS} .{GRID}{{stroke:#3c3c3c}}.{CLASS} .halo{{stroke:#1c1c1c}}\
         .{CLASS} .{INK},.{CLASS} .{WHISKER}{{stroke:#ddd}}{dark}}}"
    )
}

fn places(points: &[(f64, f64)]) -> String {
    let mut places = String::with_capacity(12 * points.len());
    for (x, y) in points {
        let _ = write!(places, "{x:.1},{y:.1} ");
    }
    places.truncate(places.trim_end().len());
    places
}

/// `text` in lines of at most `length` characters, where its words allow.
pub(super) fn wrapped(text: &str, length: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            // A number keeps its sign.
            Some(line) if word == "%" => line.push_str(" %"),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= length => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(crate::columns::shortened(word, length)),
        }
    }
    lines
}

/// Places for labels of equal height on a line from `from` to `to`, each as near to its own as can be.
pub(super) fn pushed_apart(wanted: &[f64], gap: f64, from: f64, to: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]).then(a.cmp(b)));
    // Those that touch are a block around the mean of their places.
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    let half = |count: usize| (count as f64 - 1.0) * gap / 2.0;
    let inside = |centre: f64, count: usize| {
        let (low, high) = (from + half(count), to - half(count));
        if low > high { f64::midpoint(from, to) } else { centre.clamp(low, high) }
    };
    for index in &order {
        let mut block = (inside(wanted[*index], 1), 1);
        while let Some(&(centre, count)) = blocks.last() {
            if centre + half(count) + gap <= block.0 - half(block.1) + 1e-9 {
                break;
            }
            blocks.pop();
            let all = count + block.1;
            let mean = (centre * count as f64 + block.0 * block.1 as f64) / all as f64;
            block = (inside(mean, all), all);
        }
        blocks.push(block);
    }
    let mut places = vec![0.0; wanted.len()];
    let mut order = order.into_iter();
    for (centre, count) in blocks {
        for nth in 0..count {
            if let Some(index) = order.next() {
                places[index] = centre - half(count) + nth as f64 * gap;
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_pushed_apart_and_keep_their_order() {
        assert_eq!(pushed_apart(&[50.0, 10.0], 10.0, 0.0, 100.0), [50.0, 10.0]);
        assert_eq!(
            pushed_apart(&[50.0, 50.0, 52.0], 10.0, 0.0, 100.0),
            [40.666_666_666_666_664, 50.666_666_666_666_664, 60.666_666_666_666_664]
        );
        assert_eq!(pushed_apart(&[1.0, 0.0], 10.0, 0.0, 100.0), [10.0, 0.0]);
        assert_eq!(pushed_apart(&[99.0, 100.0], 10.0, 0.0, 100.0), [90.0, 100.0]);
    }

    #[test]
    fn a_title_is_wrapped_between_words() {
        assert_eq!(wrapped("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrapped("", 4), Vec::<String>::new());
    }
}
