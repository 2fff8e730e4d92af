//! Finds what an answer says of its prompt (`usage`) while it passes, without reading the rest.

use kvroute_index_audit::Reported;
use kvroute_types::TokenCount;
use memchr::memmem;
use serde::Deserialize;

/// How the field begins. Inside a string of JSON the quotes would be escaped, so no text that a model writes looks like it.
const FIELD: &[u8] = b"\"usage\":";
/// Most bytes of the object; vLLM's has some 200.
const OBJECT_BYTES_MAX: usize = 4 << 10;

/// Follows one answer.
#[derive(Debug, Default)]
pub(crate) struct UsageReader {
    /// What the field may have begun in.
    held: Vec<u8>,
    latest: Option<Reported>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u32,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u32>,
}

impl UsageReader {
    /// The next bytes of the answer, as they come.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        if self.held.is_empty() {
            let rest = self.search(bytes);
            self.held.extend_from_slice(&bytes[rest..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(bytes);
            let rest = self.search(&held);
            held.drain(..rest);
            self.held = held;
        }
    }

    /// What the answer said last.
    pub(crate) fn reported(&self) -> Option<Reported> {
        self.latest
    }

    /// Where the rest begins that must be seen again with what follows.
    fn search(&mut self, bytes: &[u8]) -> usize {
        let mut from = 0;
        while let Some(at) = memmem::find(&bytes[from..], FIELD).map(|at| from + at) {
            let value = &bytes[at + FIELD.len()..];
            let mut values =
                serde_json::Deserializer::from_slice(value).into_iter::<Option<Usage>>();
            match values.next() {
                Some(Ok(usage)) => self.latest = usage.map(Reported::from).or(self.latest),
                // Its end has not come.
                None => return at,
                Some(Err(error)) if error.is_eof() && value.len() < OBJECT_BYTES_MAX => return at,
                Some(Err(_)) => {}
            }
            from = at + FIELD.len();
        }
        // Between two events nothing is open, and a field cannot begin.
        let may_begin = if bytes.ends_with(b"\n") { 0 } else { FIELD.len() - 1 };
        bytes.len().saturating_sub(may_begin).max(from)
    }
}

impl From<Usage> for Reported {
    fn from(Usage { prompt_tokens, prompt_tokens_details }: Usage) -> Self {
        let cached_tokens = prompt_tokens_details.and_then(|details| details.cached_tokens);
        Self {
            prompt_tokens: TokenCount(prompt_tokens),
            cached_tokens: cached_tokens.map(TokenCount),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a stream and a whole answer, in the bytes of vLLM 0.32.0.
    const STREAM: &str = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"text\":\"\\\"usage\\\":{\"}],\"usage\":null}\n\n\
        data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":4219,\"total_tokens\":4223,\"completion_tokens\":4,\
        \"prompt_tokens_details\":{\"cached_tokens\":4192}}}\n\ndata: [DONE]\n\n";
    const WHOLE: &str = "{\"choices\":[{\"message\":{\"content\":\"the \\\"usage\\\":{\\\"prompt_tokens\\\":1}\"}}],\
        \"usage\":{\"prompt_tokens\":19,\"total_tokens\":27,\"completion_tokens\":8,\"prompt_tokens_details\":null},\"x\":1}";

    fn reported(text: &str, piece: usize) -> Option<(u32, Option<u32>)> {
        let mut reader = UsageReader::default();
        for bytes in text.as_bytes().chunks(piece) {
            reader.read(bytes);
            assert!(reader.held.len() <= 2 * OBJECT_BYTES_MAX);
        }
        reader.reported().map(|it| (it.prompt_tokens.0, it.cached_tokens.map(|it| it.0)))
    }

    #[test]
    fn usage_is_found_however_the_answer_is_cut() {
        for piece in 1..STREAM.len() {
            assert_eq!(reported(STREAM, piece), Some((4219, Some(4192))), "in pieces of {piece}");
        }
        for piece in 1..WHOLE.len() {
            assert_eq!(reported(WHOLE, piece), Some((19, None)), "in pieces of {piece}");
        }
    }

    #[test]
    fn the_latest_usage_counts_and_other_values_do_not() {
        let twice = "{\"usage\":{\"prompt_tokens\":3}}\n\n{\"usage\":{\"prompt_tokens\":3,\"prompt_tokens_details\":\
            {\"cached_tokens\":0}}}\n\n{\"usage\":null}\n\n";
        assert_eq!(reported(twice, 7), Some((3, Some(0))));
        assert_eq!(reported("{\"usage\":3,\"a\":1}", 100), None);
        assert_eq!(reported("{\"usage\":{\"prompt_tokens\":-3}}", 100), None);
        assert_eq!(reported(&format!("{{\"usage\":{{\"a\":\"{}", "x".repeat(20_000)), 100), None);
        assert_eq!(reported("", 1), None);
    }
}
