//! Text to token ids and back, without a vocabulary file.
//!
//! Every id stands for a fixed short string and every text has one tokenisation, found by arithmetic alone:
//!
//! | ids | stand for |
//! |---|---|
//! | 0..4 | `<|pad|>`, `<|bos|>`, `<|im_end|>` (also the end-of-sequence token), `<|im_start|>` |
//! | 16..272 | one byte each |
//! | 272..1382 | 1 to 3 decimal digits |
//! | 1382..1902398 | 1 to 4 ASCII letters of which only the first may be upper case, with or without one space before |
//!
//! English text comes out at roughly 3.5 bytes a token. Decoding is exact, so text is the same after a round trip, and
//! ids are the same after one whenever each of them is a word that begins with a space, as the mock's answers are.
//! It is *not* any real model's vocabulary: ids mean nothing elsewhere.

use kvroute_types::mix64;

/// Begins a text prompt of the completions API.
pub(crate) const BOS: u32 = 1;
/// Ends a chat message, and an answer.
pub(crate) const EOS: u32 = 2;
/// Begins a chat message.
pub(crate) const IM_START: u32 = 3;
/// Number of ids; all are below.
pub(crate) const VOCABULARY: u32 = WORDS + 4 * FORMS;

const SPECIALS: [&str; 4] = ["<|pad|>", "<|bos|>", "<|im_end|>", "<|im_start|>"];
const BYTES: u32 = 16;
const DIGITS: u32 = BYTES + 256;
const WORDS: u32 = DIGITS + 10 + 100 + 1_000;
/// Lower-case words of 1 to 4 letters.
const FORMS: u32 = 26 + 26 * 26 + 26 * 26 * 26 + 26 * 26 * 26 * 26;
const LETTERS_MAX: usize = 4;
const DIGITS_MAX: usize = 3;

/// Appends the ids of `text` to `tokens`, but stops when there are `limit` in all.
pub(crate) fn tokenize(text: &str, limit: usize, tokens: &mut Vec<u32>) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() && tokens.len() < limit {
        let (token, len) = first_token(rest);
        tokens.push(token);
        rest = &rest[len..];
    }
}

/// Appends the bytes that `token` stands for; an id out of the vocabulary stands for nothing.
pub(crate) fn decode_into(token: u32, bytes: &mut Vec<u8>) {
    if let Some(special) = SPECIALS.get(token as usize) {
        bytes.extend_from_slice(special.as_bytes());
    } else if (BYTES..DIGITS).contains(&token) {
        bytes.extend((token - BYTES).to_le_bytes().first());
    } else if (DIGITS..WORDS).contains(&token) {
        let (number, len) = unrank(token - DIGITS, 10, DIGITS_MAX);
        bytes.extend_from_slice(&spell(number, len, 10, b'0'));
    } else if (WORDS..VOCABULARY).contains(&token) {
        let (style, form) = ((token - WORDS) / FORMS, (token - WORDS) % FORMS);
        let (number, len) = unrank(form, 26, LETTERS_MAX);
        let mut letters = spell(number, len, 26, b'a');
        if style & 1 == 1 {
            letters[0] = letters[0].to_ascii_uppercase();
        }
        if style & 2 == 2 {
            bytes.push(b' ');
        }
        bytes.extend_from_slice(&letters);
    }
}

/// The text of the tokens; bytes that are no UTF-8 become U+FFFD.
pub(crate) fn detokenize(tokens: &[u32]) -> String {
    let mut bytes = Vec::with_capacity(tokens.len() * 4);
    for &token in tokens {
        decode_into(token, &mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The token as vocabularies print it: `Ġ` for a space, `Ċ` for a line feed.
pub(crate) fn token_str(token: u32) -> String {
    detokenize(&[token]).replace(' ', "Ġ").replace('\n', "Ċ")
}

/// A pronounceable word of one or two syllables drawn by `draw`, with a space before it if asked for.
pub(crate) fn word(draw: u64, space: bool) -> u32 {
    const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
    const VOWELS: &[u8; 5] = b"aeiou";
    let bits = mix64(draw);
    let bytes = bits.to_le_bytes();
    let pick = |set: &[u8], byte: usize| set[usize::from(bytes[byte]) % set.len()];
    let letters = [pick(CONSONANTS, 0), pick(VOWELS, 1), pick(CONSONANTS, 2), pick(VOWELS, 3)];
    let len = if bits >> 62 == 0 { 2 } else { 4 };
    let form = rank(&letters[..len], 26, b'a');
    WORDS + if space { 2 * FORMS } else { 0 } + form
}

/// The first token of `text`, which is not empty, and its length in bytes.
fn first_token(text: &[u8]) -> (u32, usize) {
    let space = usize::from(text[0] == b' ' && text.get(1).is_some_and(u8::is_ascii_alphabetic));
    let word = &text[space..];
    if word[0].is_ascii_alphabetic() {
        let more = word[1..].iter().take(LETTERS_MAX - 1).take_while(|c| c.is_ascii_lowercase());
        let len = 1 + more.count();
        let mut letters = [0; LETTERS_MAX];
        letters[..len].copy_from_slice(&word[..len]);
        let capital = u32::from(letters[0].is_ascii_uppercase());
        letters.make_ascii_lowercase();
        let style = capital + if space == 1 { 2 } else { 0 };
        return (WORDS + style * FORMS + rank(&letters[..len], 26, b'a'), space + len);
    }
    let digits = text.iter().take(DIGITS_MAX).take_while(|c| c.is_ascii_digit()).count();
    if digits > 0 {
        return (DIGITS + rank(&text[..digits], 10, b'0'), digits);
    }
    (BYTES + u32::from(text[0]), 1)
}

/// Number of a string among all non-empty strings over the alphabet, shorter ones first.
fn rank(string: &[u8], alphabet: u32, first: u8) -> u32 {
    let shorter: u32 = (1..string.len()).map(|len| alphabet.pow(exponent(len))).sum();
    string.iter().fold(0, |number, c| number * alphabet + u32::from(c - first)) + shorter
}

/// Inverse of [`rank`]: the number among strings of its length, and the length.
fn unrank(mut rank: u32, alphabet: u32, len_max: usize) -> (u32, usize) {
    for len in 1..len_max {
        let count = alphabet.pow(exponent(len));
        if rank < count {
            return (rank, len);
        }
        rank -= count;
    }
    (rank, len_max)
}

fn spell(mut number: u32, len: usize, alphabet: u32, first: u8) -> Vec<u8> {
    let mut string = vec![first; len];
    for c in string.iter_mut().rev() {
        *c += u8::try_from(number % alphabet).expect("alphabets are small");
        number /= alphabet;
    }
    string
}

fn exponent(len: usize) -> u32 {
    u32::try_from(len).expect("strings are short")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        tokenize(text, usize::MAX, &mut tokens);
        tokens
    }

    #[test]
    fn text_survives_a_round_trip() {
        for text in [
            "",
            "def hello(): return the world",
            "  two  spaces\n\ttab, Capital HTTP 1234567 zz9 ",
            "naïve 日本語 🙂 <|im_end|>",
        ] {
            assert_eq!(detokenize(&ids(text)), text);
        }
    }

    #[test]
    fn every_id_has_its_own_text() {
        for token in
            (BYTES..BYTES + 128).chain(DIGITS..WORDS).chain((WORDS..VOCABULARY).step_by(97))
        {
            assert_eq!(ids(&detokenize(&[token]))[..1], ids(&detokenize(&[token])), "{token}");
            let is_digit_or_letter = (BYTES..DIGITS).contains(&token)
                && (token - BYTES).to_le_bytes()[0].is_ascii_alphanumeric();
            assert!(is_digit_or_letter || ids(&detokenize(&[token])) == [token], "{token}");
        }
        assert_eq!(detokenize(&[VOCABULARY - 1]), " Zzzz");
        assert_eq!(VOCABULARY, 1_902_398);
    }

    #[test]
    fn words_are_cut_at_four_letters() {
        let pieces: Vec<_> = ids("say Hello to x12345").into_iter().map(token_str).collect();
        assert_eq!(pieces, ["say", "ĠHell", "o", "Ġto", "Ġx", "123", "45"]);
    }

    #[test]
    fn drawn_words_keep_their_ids() {
        let tokens: Vec<u32> = (0..1_000).map(|draw| word(draw, draw > 0)).collect();
        assert_eq!(ids(&detokenize(&tokens)), tokens);
    }

    #[test]
    fn a_limit_ends_early() {
        let mut tokens = vec![BOS];
        tokenize("a b c d", 3, &mut tokens);
        assert_eq!(tokens.len(), 3);
    }
}
