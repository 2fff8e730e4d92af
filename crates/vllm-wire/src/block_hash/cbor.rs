//! The part of canonical CBOR (RFC 8949, section 4.2) that a block needs, as `cbor2` writes it.

use super::ExtraKey;

/// Major types, in the top three bits of an item's first byte.
const UNSIGNED: u8 = 0 << 5;
const NEGATIVE: u8 = 1 << 5;
const BYTES: u8 = 2 << 5;
const TEXT: u8 = 3 << 5;
const ARRAY: u8 = 4 << 5;
const NULL: u8 = 0xf6;

/// One block's CBOR, in a buffer that is used again.
#[derive(Clone, Debug, Default)]
pub(super) struct CborWriter {
    out: Vec<u8>,
}

impl CborWriter {
    pub(super) fn text_alone(&mut self, text: &str) -> &[u8] {
        self.out.clear();
        self.text(text);
        &self.out
    }

    pub(super) fn begin(&mut self, parent: &[u8; 32], token_count: usize) {
        self.out.clear();
        self.head(ARRAY, 3);
        self.bytes(parent);
        self.head(ARRAY, token_count as u64);
    }

    pub(super) fn tokens(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.head(UNSIGNED, token.into());
        }
    }

    pub(super) fn finish(&mut self, keys: &[ExtraKey<'_>]) -> &[u8] {
        if keys.is_empty() {
            self.out.push(NULL);
        } else {
            self.head(ARRAY, keys.len() as u64);
        }
        for key in keys {
            self.key(key);
        }
        &self.out
    }

    fn key(&mut self, key: &ExtraKey<'_>) {
        match *key {
            ExtraKey::Lora { name, path } => {
                self.head(ARRAY, 3);
                self.text("lora");
                self.text(name);
                self.text(path);
            }
            ExtraKey::Mm { identifier, offset } => {
                self.head(ARRAY, 3);
                self.text("mm");
                self.text(identifier);
                self.int(offset);
            }
            ExtraKey::CacheSalt(salt) => {
                self.head(ARRAY, 2);
                self.text("cache_salt");
                self.text(salt);
            }
            ExtraKey::PromptEmbeds(digest) => {
                self.head(ARRAY, 2);
                self.text("prompt_embeds");
                self.bytes(digest);
            }
        }
    }

    fn int(&mut self, value: i64) {
        // A negative n is written as -1 - n, which is its bitwise complement.
        match u64::try_from(value) {
            Ok(value) => self.head(UNSIGNED, value),
            Err(_) => self.head(NEGATIVE, (!value).cast_unsigned()),
        }
    }

    fn text(&mut self, text: &str) {
        self.head(TEXT, text.len() as u64);
        self.out.extend_from_slice(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.head(BYTES, bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    /// Major type and argument, in the fewest bytes.
    fn head(&mut self, major: u8, argument: u64) {
        let [b7, b6, b5, b4, b3, b2, b1, b0] = argument.to_be_bytes();
        match argument {
            0..=23 => self.out.push(major | b0),
            24..=0xff => self.out.extend_from_slice(&[major | 0x18, b0]),
            0x100..=0xffff => self.out.extend_from_slice(&[major | 0x19, b1, b0]),
            0x1_0000..=0xffff_ffff => self.out.extend_from_slice(&[major | 0x1a, b3, b2, b1, b0]),
            _ => self.out.extend_from_slice(&[major | 0x1b, b7, b6, b5, b4, b3, b2, b1, b0]),
        }
    }
}
