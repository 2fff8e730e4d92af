//! A map of values over two settings, each written into its cell.

use super::axis::{EXCESSES, excess, short};
use super::canvas::{Anchor, CHARACTER, Canvas, WHISKER, WIDTH};

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
    /// What the colours mean.
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
    /// A share; `None` for one that is not known to differ from zero.
    pub(super) value: Option<f64>,
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

/// How shares become colours: always the same, so that maps can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    /// Share above the best: the best is light, a hundred times and more dark.
    Excess,
    /// Gain as a share of the one, loss as a share above it: by the ratio of the two, to ten times either way.
    Gain,
}

impl Colours {
    /// Shares that the key names, from one end to the other.
    fn key(self) -> Vec<(f64, String)> {
        match self {
            Self::Excess => {
                let known = EXCESSES.iter().filter(|(share, _)| *share <= HUNDRED_TIMES);
                known
                    .map(|(share, name)| {
                        let more = if *share < HUNDRED_TIMES { "" } else { "≥ " };
                        (*share, format!("{more}{name}"))
                    })
                    .collect()
            }
            Self::Gain => [
                (-9.0, "≥ × 10 slower"),
                (-1.0, "× 2"),
                (-0.05, "-5 %"),
                (0.0, "0"),
                (0.05, "5 %"),
                (0.5, "50 %"),
                (0.9, "90 % less"),
            ]
            .map(|(share, name)| (share, name.to_owned()))
            .to_vec(),
        }
    }

    /// Share of the way along the colours.
    fn place(self, share: f64) -> f64 {
        match self {
            Self::Excess => excess(share) / excess(HUNDRED_TIMES),
            Self::Gain if share < 0.0 => 0.5 - 0.5 * excess(-share) / excess(9.0),
            Self::Gain => 0.5 + 0.5 * excess(1.0 / (1.0 - share.min(0.999)) - 1.0) / excess(9.0),
        }
    }

    /// The colour at a share of the way.
    fn shade(self, way: f64) -> [u8; 3] {
        let stops = match self {
            Self::Excess => SEQUENTIAL,
            Self::Gain => DIVERGING,
        };
        let at = way.clamp(0.0, 1.0) * 4.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the whole part of a number from 0 to 4"
        )]
        let nth = (at as usize).min(3);
        let within = at - nth as f64;
        let (from, to) = (stops[nth], stops[nth + 1]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between two colours, which are bytes"
        )]
        [0, 1, 2].map(|part| (from[part] + (to[part] - from[part]) * within).round() as u8)
    }

    /// The colour of a tile; grey for no difference.
    fn of(self, share: Option<f64>) -> [u8; 3] {
        const NO_DIFFERENCE: [u8; 3] = [225, 225, 225];
        share.map_or(NO_DIFFERENCE, |share| self.shade(self.place(share)))
    }
}

/// Share above the best from which on all is as dark as can be.
const HUNDRED_TIMES: f64 = 99.0;

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
            ((room - 4.0) / (0.62 * length)).min(11.5)
        };
        for (nth, label) in y_labels.iter().enumerate() {
            let y = bottom - (nth as f64 + 0.5) * height;
            canvas.text(left - 5.0, y + 4.0, Anchor::End, label);
        }
        for tile in &self.cells {
            let at = (left + tile.x as f64 * width, bottom - (tile.y as f64 + 1.0) * height);
            let [red, green, blue] = self.colours.of(tile.value);
            let colour = format!("#{red:02x}{green:02x}{blue:02x}");
            canvas.tile(at, (width - 1.0, height - 1.0), &colour);
            // Text too small to be read is left out: the table has it.
            let text = &tile.text;
            let font = size(text, width);
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
                    text,
                );
                if tile.emphasis == Emphasis::Best {
                    canvas.styled_text(
                        at.0 + 2.5,
                        at.1 + 9.0,
                        Anchor::Start,
                        &format!("class=\"{class}\" fill=\"{ink}\" font-size=\"9\""),
                        "★",
                    );
                }
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
        self.draw_key(&mut canvas);
        canvas.into_svg()
    }

    /// Colours and what values they are.
    fn draw_key(&self, canvas: &mut Canvas) {
        const STEPS: u32 = 48;
        const KEY_HEIGHT: f64 = 11.0;
        let y = canvas.height + 4.0;
        canvas.text(2.0, y + 9.0, Anchor::Start, &self.value);
        let (left, right, top) = (8.0, WIDTH - 34.0, y + 15.0);
        let width = (right - left) / f64::from(STEPS);
        for step in 0..STEPS {
            let [red, green, blue] = self.colours.shade((f64::from(step) + 0.5) / f64::from(STEPS));
            let colour = format!("#{red:02x}{green:02x}{blue:02x}");
            canvas.tile((left + f64::from(step) * width, top), (width + 0.3, KEY_HEIGHT), &colour);
        }
        let mut free_from = 0.0;
        for (share, name) in self.colours.key() {
            let x = left + (right - left) * self.colours.place(share).clamp(0.0, 1.0);
            let wide = CHARACTER * name.chars().count() as f64;
            let from = (x - wide / 2.0).clamp(2.0, WIDTH - wide - 2.0);
            if from < free_from {
                continue;
            }
            free_from = from + wide + 4.0;
            canvas.rule(WHISKER, (x, top + KEY_HEIGHT), (x, top + KEY_HEIGHT + 3.0));
            canvas.text(from, top + KEY_HEIGHT + 14.0, Anchor::Start, &name);
        }
        canvas.height = top + KEY_HEIGHT + 20.0;
    }
}
