//! The frames around a payload (`vllm/distributed/kv_events.py`, `ZmqEventPublisher`).
//!
//! | message | from, to | frames |
//! |---|---|---|
//! | publish | PUB to SUB | `topic` `seq` `payload` |
//! | replay request | DEALER to ROUTER | empty `seq` |
//! | replayed batch, vLLM 0.26 and later | ROUTER to DEALER | empty `topic` `seq` `payload` |
//! | replayed batch, before | ROUTER to DEALER | empty `seq` `payload` |
//! | end of replay, vLLM 0.26 and later | ROUTER to DEALER | empty empty [`END_SEQ`] empty |
//! | end of replay, before | ROUTER to DEALER | empty [`END_SEQ`] empty |
//!
//! `seq` is 8 bytes, big-endian. A REQ socket adds and strips the leading empty frame itself (and
//! reads one reply only, so a client wants a DEALER); a ROUTER adds the client's identity in front,
//! which is not shown and not expected here.

use std::borrow::Cow;

/// The sequence number that ends a replay: 8 bytes of `0xff`, which vLLM writes as -1.
pub const END_SEQ: u64 = u64::MAX;

/// A published or replayed batch, split into its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFrames<'a> {
    /// The publisher's topic, UTF-8 by vLLM's doing; `None` in replies of vLLM before 0.26.
    pub topic: Option<&'a [u8]>,
    /// Number of the batch: from 0 when the server starts, one more for each.
    pub seq: u64,
    /// The batch, for [`EventBatch::decode`](crate::EventBatch::decode).
    pub payload: &'a [u8],
}

/// One message of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayReply<'a> {
    /// A batch that the server still has.
    Batch(BatchFrames<'a>),
    /// Nothing follows.
    End,
}

/// Which release's replies to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayForm<'a> {
    /// vLLM 0.26 and later: with the publisher's topic.
    WithTopic(&'a str),
    /// vLLM before 0.26: without a topic frame.
    WithoutTopic,
}

/// Why frames are no message of the kind expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Too few or too many frames.
    #[error("{found} frames where {expected} were expected; is the peer a vLLM event socket?")]
    Count {
        /// The numbers that are possible.
        expected: &'static str,
        /// The number there was.
        found: usize,
    },
    /// A sequence number that is not 8 bytes.
    #[error("a sequence number of {found} bytes; vLLM's have 8")]
    SeqLength {
        /// Its length in bytes.
        found: usize,
    },
    /// The first of four frames of a reply, which separates the envelope from the rest, has content.
    #[error("a replay reply whose first frame has {found} bytes; strip a ROUTER's identity first")]
    Delimiter {
        /// Its length in bytes.
        found: usize,
    },
}

/// The frames of a batch as a PUB socket sends them.
pub fn publish_frames<'a>(topic: &'a str, seq: u64, payload: &'a [u8]) -> [Cow<'a, [u8]>; 3] {
    [topic.as_bytes().into(), seq_frame(seq), payload.into()]
}

/// Splits a message as a SUB socket receives it.
///
/// # Errors
/// [`FrameError`] unless there are three frames, the second of 8 bytes.
pub fn parse_publish<F: AsRef<[u8]>>(frames: &[F]) -> Result<BatchFrames<'_>, FrameError> {
    let [topic, seq, payload] = frames else {
        return Err(FrameError::Count { expected: "3", found: frames.len() });
    };
    let topic = Some(topic.as_ref());
    Ok(BatchFrames { topic, seq: parse_seq(seq.as_ref())?, payload: payload.as_ref() })
}

/// The frames with which a DEALER asks for every batch from `start_seq` on that the server has.
///
/// The server answers with those batches and an end; a start that it no longer has begins later
/// without a word, which the first reply's number shows.
pub fn replay_request_frames(start_seq: u64) -> [Cow<'static, [u8]>; 2] {
    [Cow::Borrowed(&[]), seq_frame(start_seq)]
}

/// The start that a replay request asks for; `frames` are those after the identity.
///
/// As vLLM does, takes any first frame and a number of any length: none is 0, and one past the
/// range of `u64` is [`u64::MAX`], which no batch has.
///
/// # Errors
/// [`FrameError::Count`] unless there are two frames; vLLM does not answer such a request.
pub fn parse_replay_request<F: AsRef<[u8]>>(frames: &[F]) -> Result<u64, FrameError> {
    let [_delimiter, start] = frames else {
        return Err(FrameError::Count { expected: "2", found: frames.len() });
    };
    let start = start.as_ref();
    let (high, low) = start.split_at(start.len().saturating_sub(8));
    if high.iter().any(|byte| *byte != 0) {
        return Ok(u64::MAX);
    }
    Ok(low.iter().fold(0, |seq, byte| seq << 8 | u64::from(*byte)))
}

/// The frames of a replayed batch, to be sent after the client's identity.
pub fn replay_batch_frames<'a>(
    form: ReplayForm<'a>,
    seq: u64,
    payload: &'a [u8],
) -> Vec<Cow<'a, [u8]>> {
    let topic = match form {
        ReplayForm::WithTopic(topic) => Some(topic.as_bytes()),
        ReplayForm::WithoutTopic => None,
    };
    reply_frames(topic, seq, payload)
}

/// The frames that end a replay, to be sent after the client's identity. The topic is not in them.
pub fn replay_end_frames(form: ReplayForm<'_>) -> Vec<Cow<'static, [u8]>> {
    let topic: Option<&[u8]> = match form {
        ReplayForm::WithTopic(_) => Some(&[]),
        ReplayForm::WithoutTopic => None,
    };
    reply_frames(topic, END_SEQ, &[])
}

/// Splits one message of a replay, with or without topic, as a DEALER or a REQ socket receives it.
///
/// An empty frame before `seq` and `payload` is the delimiter of an older server's reply or the
/// empty topic of a newer one's, which look the same; it is taken for the former.
///
/// # Errors
/// [`FrameError`] unless there are two to four frames, the last but one of 8 bytes, and the first
/// of four empty.
pub fn parse_replay_reply<F: AsRef<[u8]>>(frames: &[F]) -> Result<ReplayReply<'_>, FrameError> {
    let (topic, seq, payload) = match frames {
        [delimiter, topic, seq, payload] => {
            let found = delimiter.as_ref().len();
            if found > 0 {
                return Err(FrameError::Delimiter { found });
            }
            (Some(topic.as_ref()), seq, payload)
        }
        [topic, seq, payload] => (Some(topic.as_ref()).filter(|t| !t.is_empty()), seq, payload),
        [seq, payload] => (None, seq, payload),
        _ => return Err(FrameError::Count { expected: "2 to 4", found: frames.len() }),
    };
    Ok(match parse_seq(seq.as_ref())? {
        END_SEQ => ReplayReply::End,
        seq => ReplayReply::Batch(BatchFrames { topic, seq, payload: payload.as_ref() }),
    })
}

fn reply_frames<'a>(topic: Option<&'a [u8]>, seq: u64, payload: &'a [u8]) -> Vec<Cow<'a, [u8]>> {
    let mut frames = Vec::with_capacity(4);
    frames.push(Cow::Borrowed(&[][..]));
    frames.extend(topic.map(Cow::Borrowed));
    frames.push(seq_frame(seq));
    frames.push(payload.into());
    frames
}

fn seq_frame<'a>(seq: u64) -> Cow<'a, [u8]> {
    Cow::Owned(seq.to_be_bytes().to_vec())
}

fn parse_seq(frame: &[u8]) -> Result<u64, FrameError> {
    let bytes = frame.try_into().map_err(|_| FrameError::SeqLength { found: frame.len() })?;
    Ok(u64::from_be_bytes(bytes))
}
