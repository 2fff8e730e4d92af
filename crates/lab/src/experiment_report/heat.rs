//! A map of values over two settings, each written into its cell.

use super::axis::short;
use super::canvas::{Anchor, CHARACTER, Canvas, WIDTH};

/// From good (light) to bad (dark); reads in grey too.
const SEQUENTIAL: [[f64; 3]; 5] = [
    [255.0, 252.0, 231.0],
    [254.0, 217.0, 142.0],
    [245.0, 148.0, 60.0],
    [184.0, 78.0, 30.0],
    [92.0, 32.0, 20.0],
];
/// From worse (orange) over equal (white) to better (blue), after Okabe & Ito.
const DIVERGING: [[f64; 3]; 5] = [
    [176.0, 78.0, 0.0],
    [240.0, 170.0, 110.0],
    [247.0, 247.0, 247.0],
    [120.0, 180.0, 225.0],
    [0.0, 94.0, 158.0],
];

/// Values over two settings.
pub(super) struct Heat {
    pub(super) title: String,
    pub(super) note: String,
    /// What the values are, with their unit.
    pub(super) value: String,
    /// Name and values of the horizontal setting.
    pub(super) x: (String, Vec<f64>),
    /// Name and values of the vertical one, drawn upwards.
    pub(super) y: (String, Vec<f64>),
    pub(super) cells: Vec<Tile>,
    pub(super) colours: Colours,
}

/// One value.
pub(super) struct Tile {
    /// Indices of its settings.
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) value: f64,
    /// What is written.
    pub(super) text: String,
    pub(super) emphasis: Emphasis,
}

/// How a tile is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Emphasis {
    None,
    /// Nearly as good as the best.
    Near,
    /// The best, with a star.
    Best,
}

/// How values become colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    /// Less is better; by the logarithm where values are positive.
    LessIsBetter,
    /// Above zero is better, below is worse.
    Signed,
}

impl Heat {
    pub(super) fn to_svg(&self) -> String {
        let mut canvas = Canvas::new(&self.title);
        canvas.note(&self.note);
        let (columns, rows) = (self.x.1.len().max(1) as f64, self.y.1.len().max(1) as f64);
        let label = |value: &f64| short(*value);
        let y_labels: Vec<_> = self.y.1.iter().map(label).collect();
        let longest = y_labels.iter().map(|label| label.chars().count()).max().unwrap_or(1);
        let left = 12.0 + CHARACTER * longest as f64;
        let width = ((WIDTH - left - 6.0) / columns).min(84.0);
        let height = width.clamp(19.0, 34.0);
        canvas.height += 16.0;
        canvas.text(2.0, canvas.height - 3.0, Anchor::Start, &format!("{} ↑", self.y.0));
        let top = canvas.height + 2.0;
        let bottom = top + rows * height;
        let size = |text: &str, room: f64| {
            let length = text.chars().count().max(1) as f64;
            ((room - 3.0) / (0.56 * length)).min(11.5)
        };
        for (nth, label) in y_labels.iter().enumerate() {
            let y = bottom - (nth as f64 + 0.5) * height;
            canvas.text(left - 5.0, y + 4.0, Anchor::End, label);
        }
        let scale = Shade::new(self.colours, self.cells.iter().map(|tile| tile.value));
        for tile in &self.cells {
            let at = (left + tile.x as f64 * width, bottom - (tile.y as f64 + 1.0) * height);
            let [red, green, blue] = scale.of(tile.value);
            let colour = format!("#{red:02x}{green:02x}{blue:02x}");
            canvas.tile(at, (width - 1.0, height - 1.0), &colour);
            let text = match tile.emphasis {
                Emphasis::Best => format!("★{}", tile.text),
                _ => tile.text.clone(),
            };
            // Text too small to be read is left out: the table has it.
            let font = size(&text, width);
            if font >= 6.5 {
                let is_light =
                    0.3 * f64::from(red) + 0.59 * f64::from(green) + 0.11 * f64::from(blue) > 140.0;
                let (class, ink) =
                    if is_light { ("on-light", "#111") } else { ("on-dark", "#fff") };
                let bold =
                    if tile.emphasis == Emphasis::Best { " font-weight=\"700\"" } else { "" };
                canvas.styled_text(
                    at.0 + width / 2.0 - 0.5,
                    at.1 + height / 2.0 + 0.36 * font - 0.5,
                    Anchor::Middle,
                    &format!("class=\"{class}\" fill=\"{ink}\" font-size=\"{font:.1}\"{bold}"),
                    &text,
                );
            }
        }
        for tile in &self.cells {
            let at = (left + tile.x as f64 * width, bottom - (tile.y as f64 + 1.0) * height);
            let stroke = match tile.emphasis {
                Emphasis::None => continue,
                Emphasis::Near => 1.4,
                Emphasis::Best => 2.8,
            };
            canvas.outline((at.0 + 0.2, at.1 + 0.2), (width - 1.6, height - 1.6), stroke);
        }
        let every = ((CHARACTER * 4.0) / width).ceil().max(1.0);
        for (nth, value) in self.x.1.iter().enumerate() {
            if (nth as f64 % every).abs() < 0.5 {
                let x = left + (nth as f64 + 0.5) * width;
                canvas.text(x, bottom + 14.0, Anchor::Middle, &short(*value));
            }
        }
        canvas.text(
            left + columns * width / 2.0,
            bottom + 30.0,
            Anchor::Middle,
            &format!("{} →", self.x.0),
        );
        canvas.height = bottom + 38.0;
        self.draw_key(&mut canvas, &scale);
        canvas.into_svg()
    }

    /// Colours and what values they are.
    fn draw_key(&self, canvas: &mut Canvas, scale: &Shade) {
        const STEPS: u32 = 24;
        const KEY_WIDTH: f64 = 150.0;
        let (low, high) = (short(scale.low), short(scale.high));
        let y = canvas.height;
        let scale_name = if scale.is_log { " (log scale)" } else { "" };
        canvas.text(2.0, y + 9.0, Anchor::Start, &format!("{}{scale_name}", self.value));
        let left = (WIDTH - KEY_WIDTH - 50.0).max(0.0);
        canvas.text(left - 4.0, y + 9.0, Anchor::End, &low);
        let width = KEY_WIDTH / f64::from(STEPS);
        for step in 0..STEPS {
            let [red, green, blue] = scale.shade((f64::from(step) + 0.5) / f64::from(STEPS));
            let colour = format!("#{red:02x}{green:02x}{blue:02x}");
            canvas.tile((left + f64::from(step) * width, y), (width + 0.3, 11.0), &colour);
        }
        canvas.text(left + KEY_WIDTH + 4.0, y + 9.0, Anchor::Start, &high);
        canvas.height = y + 18.0;
    }
}

/// From a value to a colour.
struct Shade {
    low: f64,
    high: f64,
    is_log: bool,
    stops: [[f64; 3]; 5],
}

impl Shade {
    fn new(colours: Colours, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        match colours {
            Colours::LessIsBetter => {
                let is_log = low > 0.0 && high / low > 3.0;
                Self { low, high, is_log, stops: SEQUENTIAL }
            }
            Colours::Signed => {
                let size = low.abs().max(high.abs());
                Self { low: -size, high: size, is_log: false, stops: DIVERGING }
            }
        }
    }

    fn of(&self, value: f64) -> [u8; 3] {
        let measure = |value: f64| if self.is_log { value.ln() } else { value };
        let (low, high) = (measure(self.low), measure(self.high));
        let share = (measure(value) - low) / (high - low);
        // All values are equal: none is bad.
        let middle = if self.stops == DIVERGING { 0.5 } else { 0.0 };
        self.shade(if share.is_finite() { share } else { middle })
    }

    /// The colour at a share of the way.
    fn shade(&self, share: f64) -> [u8; 3] {
        let at = share.clamp(0.0, 1.0) * 4.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the whole part of a number from 0 to 4"
        )]
        let nth = (at as usize).min(3);
        let within = at - nth as f64;
        let (from, to) = (self.stops[nth], self.stops[nth + 1]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between two colours, which are bytes"
        )]
        [0, 1, 2].map(|part| (from[part] + (to[part] - from[part]) * within).round() as u8)
    }
}
