//! Figures as PNG.
//!
//! The font is in the program, so that a picture has its text on a machine without any: `DejaVu` Sans 2.37 (Bitstream Vera
//! licence), which has the Greek letters and the signs that figures use.

use std::error::Error;
use std::sync::Arc;

use resvg::{tiny_skia, usvg};
use thiserror::Error;

/// Pixels for each unit of a figure: sharp in print.
const SCALE: f32 = 2.0;
/// The font that is in the program.
const FAMILY: &str = "DejaVu Sans";

/// A figure that could not be made a picture.
#[derive(Debug, Error)]
pub enum PngError {
    /// It is no SVG that can be drawn.
    #[error("the figure cannot be read as SVG; give one that this crate drew")]
    Svg(#[source] Box<usvg::Error>),
    /// It has no area, or one that does not fit in memory.
    #[error("a figure of {width} x {height} pixels cannot be drawn")]
    Size {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// The picture could not be written.
    #[error("the picture cannot be encoded")]
    Encoding(#[source] Box<dyn Error + Send + Sync>),
}

/// A figure as PNG, on white, two pixels for each of its units.
///
/// # Errors
/// If `svg` is no SVG, or its size is none.
pub fn svg_to_png(svg: &str) -> Result<Vec<u8>, PngError> {
    let mut fonts = usvg::fontdb::Database::new();
    for font in [dejavu::sans::regular(), dejavu::sans::bold()] {
        fonts.load_font_source(usvg::fontdb::Source::Binary(Arc::new(font)));
    }
    fonts.set_sans_serif_family(FAMILY);
    let options = usvg::Options {
        font_family: FAMILY.to_owned(),
        fontdb: Arc::new(fonts),
        ..usvg::Options::default()
    };
    let tree =
        usvg::Tree::from_str(svg, &options).map_err(|error| PngError::Svg(Box::new(error)))?;
    let size = tree.size().to_int_size().scale_by(SCALE);
    let size = size.ok_or(PngError::Size { width: 0, height: 0 })?;
    let (width, height) = (size.width(), size.height());
    let mut picture =
        tiny_skia::Pixmap::new(width, height).ok_or(PngError::Size { width, height })?;
    picture.fill(tiny_skia::Color::WHITE);
    resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut picture.as_mut());
    picture.encode_png().map_err(|error| PngError::Encoding(Box::new(error)))
}
