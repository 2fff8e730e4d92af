//! Content: segments, and the tokens they stand for.

use std::num::NonZeroU32;

use kvroute_types::mix64;

/// Identity of a piece of content: one fixed, endless stream of tokens.
///
/// Equal ids mean equal tokens. Different ids are taken to differ from their first token on, as two
/// random streams do (with vocabulary `V` they agree there with probability `1 / V`, and no
/// accounting depends on it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u64);

impl SegmentId {
    /// The `number`-th segment of a number space.
    ///
    /// Within one space ids never collide; two spaces collide with probability 2^-64 per pair.
    pub(crate) const fn derive(space: u64, number: u64) -> Self {
        Self(mix64(mix64(space) ^ number))
    }
}

/// The first `tokens` tokens of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which stream.
    pub id: SegmentId,
    /// How many of its tokens, from the first; at least 1.
    pub tokens: u32,
}

/// Renders segments as token ids, `0..vocabulary`.
///
/// Token `i` of segment `s` is a fixed function of `(s, i, salt)`. Runs against one server that
/// must not find each other's cache entries take different salts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenStream {
    vocabulary: NonZeroU32,
    salt: u64,
}

impl TokenStream {
    /// Streams over a vocabulary of `vocabulary` ids.
    pub const fn new(vocabulary: NonZeroU32, salt: u64) -> Self {
        Self { vocabulary, salt }
    }

    /// Token `index` of segment `id`.
    pub fn token(&self, id: SegmentId, index: u32) -> u32 {
        let stream = mix64(id.0 ^ mix64(self.salt));
        let random = mix64(stream.wrapping_add(u64::from(index))) >> 32;
        // Multiply and shift maps 32 random bits onto the vocabulary without a division.
        let scaled = (random * u64::from(self.vocabulary.get())) >> 32;
        u32::try_from(scaled).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_fixed_in_range_and_salted() {
        let stream = TokenStream::new(NonZeroU32::new(100).unwrap(), 7);
        let salted = TokenStream::new(NonZeroU32::new(100).unwrap(), 8);
        let render =
            |s: &TokenStream| (0..200).map(|i| s.token(SegmentId(3), i)).collect::<Vec<_>>();
        assert!(render(&stream).iter().all(|&token| token < 100));
        assert_eq!(render(&stream), render(&stream));
        assert_ne!(render(&stream), render(&salted));
    }
}
