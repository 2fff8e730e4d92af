//! Text tables: numbers as text, and columns side by side.

use std::fmt::Write as _;

/// Columns between two neighbours, if there is room.
const GAP: usize = 2;

/// One column of a text table under `H` lines of heading.
pub(crate) struct Column<const H: usize> {
    heading: [&'static str; H],
    cells: Vec<String>,
}

impl<const H: usize> Column<H> {
    pub(crate) fn new(heading: [&'static str; H], cells: impl Iterator<Item = String>) -> Self {
        Self { heading, cells: cells.collect() }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().map(String::as_str);
        self.heading.into_iter().chain(cells).map(|text| text.chars().count()).max().unwrap_or(0)
    }
}

/// How a table is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Leading columns that hold names; the others hold numbers.
    pub(crate) names: usize,
    /// Characters that a line should not exceed.
    pub(crate) width: usize,
    /// Characters that a name keeps at least.
    pub(crate) name_width_min: usize,
}

impl Layout {
    /// The columns side by side, the names flush left and the numbers flush right. When the table is too wide the
    /// longest name gives way.
    pub(crate) fn table<const H: usize>(self, mut columns: Vec<Column<H>>) -> String {
        let Self { names, width, name_width_min } = self;
        let mut widths: Vec<_> = columns.iter().map(Column::width).collect();
        let gaps = columns.len() - 1;
        let gap = if widths.iter().sum::<usize>() + GAP * gaps <= width { GAP } else { 1 };
        while widths.iter().sum::<usize>() + gap * gaps > width {
            // The first of equals.
            let longest = widths[..names].iter_mut().rev().max();
            match longest {
                Some(longest) if *longest > name_width_min => *longest -= 1,
                _ => break,
            }
        }
        for (column, width) in columns.iter_mut().zip(&widths).take(names) {
            for name in &mut column.cells {
                *name = shortened(name, *width);
            }
        }

        let headings = (0..H).map(|i| columns.iter().map(|c| c.heading[i]).collect::<Vec<_>>());
        let rows = columns[0].cells.len();
        let cells = (0..rows).map(|i| columns.iter().map(|c| c.cells[i].as_str()).collect());
        let mut table = String::new();
        for row in headings.chain(cells) {
            let mut line = String::new();
            for (at, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let gap = if at == 0 { 0 } else { gap };
                // Writing to a string cannot fail.
                let _ = if at < names {
                    write!(line, "{:gap$}{cell:<width$}", "")
                } else {
                    write!(line, "{:gap$}{cell:>width$}", "")
                };
            }
            table.push_str(line.trim_end());
            table.push('\n');
        }
        table
    }
}

/// A number with `decimals` digits after the point, fewer where it is so large that they say nothing;
/// `-` for none. Zero has no sign.
pub(crate) fn fixed(value: Option<f64>, decimals: usize) -> String {
    let Some(value) = finite(value) else { return "-".to_owned() };
    let text = match value.abs() {
        size if size < 1e5 => format!("{value:.decimals$}"),
        size if size < 1e8 => format!("{value:.0}"),
        _ => format!("{value:.1e}"),
    };
    match text.strip_prefix('-') {
        Some(zero) if !zero.contains(|c: char| c.is_ascii_digit() && c != '0') => zero.to_owned(),
        _ => text,
    }
}

/// `name` in at most `width` characters: both ends of it, with `…` for what is left out.
pub(crate) fn shortened(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let kept = width.saturating_sub(1);
    let tail = kept / 2;
    name.chars().take(kept - tail).chain(['…']).chain(name.chars().skip(length - tail)).collect()
}

/// Neither infinite nor no number.
pub(crate) fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}
