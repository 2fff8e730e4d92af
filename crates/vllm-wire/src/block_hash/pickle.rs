//! The part of Python's pickle, protocol 5, that a block needs, as Python's own C pickler writes it.
//!
//! Three of its habits show in the bytes and so in the hash (`Modules/_pickle.c` of Python 3.11):
//!
//! * **Memo.** Bytes, texts and tuples are numbered as they are written (`MEMOIZE`), and a later
//!   reference to the *same object* is written as its number. The pickler compares objects, not
//!   values, so it matters which texts share one: the literal tag `"mm"`, and texts of at most one
//!   Latin-1 character, of which Python keeps one each. All other texts of a request reach the
//!   engine from a `MessagePack` message and are objects of their own, equal or not.
//! * **Frames.** Opcodes are grouped into frames with a length in front. One that has reached
//!   64 KiB ends before the next object begins, which takes blocks of more than 13,000 tokens;
//!   what would be shorter than 4 bytes is left without a frame.
//! * **Long texts**, of 64 KiB or more, stand between two frames.

use super::ExtraKey;

const PROTOCOL_5: [u8; 2] = [0x80, 5];
const STOP: u8 = b'.';
const NONE: u8 = b'N';
const MARK: u8 = b'(';
const TUPLE: u8 = b't';
const TUPLE_1: u8 = 0x85;
const TUPLE_2: u8 = 0x86;
const TUPLE_3: u8 = 0x87;
const INT_U8: u8 = b'K';
const INT_U16: u8 = b'M';
const INT_I32: u8 = b'J';
const INT_LONG: u8 = 0x8a;
const TEXT_U8: u8 = 0x8c;
const TEXT_U32: u8 = b'X';
const TEXT_U64: u8 = 0x8d;
const BYTES_U8: u8 = b'C';
const MEMOIZE: u8 = 0x94;
const GET_U8: u8 = b'h';
const GET_U32: u8 = b'j';
const FRAME: u8 = 0x95;

/// Bytes of a frame's opcode and length.
const FRAME_HEADER: usize = 9;
/// Length in bytes at which a frame ends (`FRAME_SIZE_TARGET`); a text this long is not framed.
const FRAME_TARGET: usize = 64 * 1024;
/// Length in bytes below which there is no frame (`FRAME_SIZE_MIN`).
const FRAME_MIN: usize = 4;

/// A text of which the pickled value holds one object however often it occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shared {
    /// The tag of multimodal keys, a literal in vLLM's source.
    MmTag,
    Empty,
    /// A text of this one character, up to `U+00FF`.
    Latin1(char),
}

impl Shared {
    fn of(text: &str) -> Option<Self> {
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (None, _) => Some(Self::Empty),
            (Some(only @ ..='\u{ff}'), None) => Some(Self::Latin1(only)),
            _ => None,
        }
    }
}

/// One block's pickle, in a buffer that is used again.
#[derive(Clone, Debug, Default)]
pub(super) struct PickleWriter {
    out: Vec<u8>,
    /// Where the open frame's content begins in `out`.
    frame: usize,
    /// Objects memoised so far.
    memo_len: u32,
    /// The memoised texts that may occur again, with their memo index.
    shared: Vec<(Shared, u32)>,
}

impl PickleWriter {
    pub(super) fn text_alone(&mut self, text: &str) -> &[u8] {
        self.start();
        self.text(text);
        self.stop()
    }

    pub(super) fn begin(&mut self, parent: &[u8; 32], token_count: usize) {
        self.start();
        self.begin_tuple(3);
        self.bytes(parent);
        self.begin_tuple(token_count);
    }

    pub(super) fn tokens(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.int(token.into());
        }
    }

    pub(super) fn finish(&mut self, token_count: usize, keys: &[ExtraKey<'_>]) -> &[u8] {
        self.end_tuple(token_count);
        if keys.is_empty() {
            self.begin_object();
            self.out.push(NONE);
        } else {
            self.begin_tuple(keys.len());
            for key in keys {
                self.key(key);
            }
            self.end_tuple(keys.len());
        }
        self.end_tuple(3);
        self.stop()
    }

    fn key(&mut self, key: &ExtraKey<'_>) {
        match *key {
            ExtraKey::Lora { name, path } => {
                self.begin_tuple(3);
                self.text("lora");
                self.text(name);
                self.text(path);
                self.end_tuple(3);
            }
            ExtraKey::Mm { identifier, offset } => {
                self.begin_tuple(3);
                self.shared_text("mm", Shared::MmTag);
                self.text(identifier);
                self.int(offset);
                self.end_tuple(3);
            }
            ExtraKey::CacheSalt(salt) => {
                self.begin_tuple(2);
                self.text("cache_salt");
                self.text(salt);
                self.end_tuple(2);
            }
            ExtraKey::PromptEmbeds(digest) => {
                self.begin_tuple(2);
                self.text("prompt_embeds");
                self.bytes(digest);
                self.end_tuple(2);
            }
        }
    }

    fn start(&mut self) {
        self.out.clear();
        self.memo_len = 0;
        self.shared.clear();
        self.out.extend_from_slice(&PROTOCOL_5);
        self.open_frame();
    }

    fn stop(&mut self) -> &[u8] {
        self.out.push(STOP);
        self.close_frame();
        &self.out
    }

    fn open_frame(&mut self) {
        self.out.extend_from_slice(&[FRAME, 0, 0, 0, 0, 0, 0, 0, 0]);
        self.frame = self.out.len();
    }

    fn close_frame(&mut self) {
        let len = self.out.len() - self.frame;
        if len < FRAME_MIN {
            self.out.drain(self.frame - FRAME_HEADER..self.frame);
        } else {
            self.out[self.frame - 8..self.frame].copy_from_slice(&(len as u64).to_le_bytes());
        }
    }

    /// To be called before each object, tuples and memoised ones included: the places where a
    /// frame may end (`_Pickler_OpcodeBoundary`).
    fn begin_object(&mut self) {
        if self.out.len() - self.frame >= FRAME_TARGET {
            self.close_frame();
            self.open_frame();
        }
    }

    /// Begins a tuple of `len` items, at least 1.
    fn begin_tuple(&mut self, len: usize) {
        self.begin_object();
        if len > 3 {
            self.out.push(MARK);
        }
    }

    /// Ends the tuple of `len` items that was begun last.
    fn end_tuple(&mut self, len: usize) {
        self.out.push(match len {
            1 => TUPLE_1,
            2 => TUPLE_2,
            3 => TUPLE_3,
            _ => TUPLE,
        });
        self.memoise();
    }

    fn int(&mut self, value: i64) {
        self.begin_object();
        let bytes = value.to_le_bytes();
        match value {
            0..=0xff => self.out.extend_from_slice(&[INT_U8, bytes[0]]),
            0x100..=0xffff => self.out.extend_from_slice(&[INT_U16, bytes[0], bytes[1]]),
            -0x8000_0000..=0x7fff_ffff => {
                let [b0, b1, b2, b3, ..] = bytes;
                self.out.extend_from_slice(&[INT_I32, b0, b1, b2, b3]);
            }
            _ => {
                // Two's complement in the fewest bytes that keep the sign, 5 to 8 of them here.
                let (len_u8, len) = (5..8)
                    .zip(5..8)
                    .find(|&(_, len)| value >> (8 * len - 1) == value >> 63)
                    .unwrap_or((8, 8));
                self.out.extend_from_slice(&[INT_LONG, len_u8]);
                self.out.extend_from_slice(&bytes[..len]);
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8; 32]) {
        self.begin_object();
        self.out.extend_from_slice(&[BYTES_U8, 32]);
        self.out.extend_from_slice(bytes);
        self.memoise();
    }

    fn text(&mut self, text: &str) {
        match Shared::of(text) {
            Some(shared) => self.shared_text(text, shared),
            None => self.new_text(text),
        }
    }

    fn shared_text(&mut self, text: &str, shared: Shared) {
        let Some(&(_, index)) = self.shared.iter().find(|(known, _)| *known == shared) else {
            self.shared.push((shared, self.memo_len));
            return self.new_text(text);
        };
        self.begin_object();
        if let Ok(index) = u8::try_from(index) {
            self.out.extend_from_slice(&[GET_U8, index]);
        } else {
            self.out.push(GET_U32);
            self.out.extend_from_slice(&index.to_le_bytes());
        }
    }

    fn new_text(&mut self, text: &str) {
        self.begin_object();
        let unframed = text.len() >= FRAME_TARGET;
        if unframed {
            self.close_frame();
        }
        if let Ok(len) = u8::try_from(text.len()) {
            self.out.extend_from_slice(&[TEXT_U8, len]);
        } else if let Ok(len) = u32::try_from(text.len()) {
            self.out.push(TEXT_U32);
            self.out.extend_from_slice(&len.to_le_bytes());
        } else {
            self.out.push(TEXT_U64);
            self.out.extend_from_slice(&(text.len() as u64).to_le_bytes());
        }
        self.out.extend_from_slice(text.as_bytes());
        if unframed {
            self.open_frame();
        }
        self.memoise();
    }

    fn memoise(&mut self) {
        self.out.push(MEMOIZE);
        self.memo_len += 1;
    }
}
