//! Frames against those recorded from a server's sockets.

use kvroute_vllm_wire::{
    BatchFrames, END_SEQ, EventBatch, FrameError, ReplayForm, ReplayReply, parse_publish,
    parse_replay_reply, parse_replay_request, publish_frames, replay_batch_frames,
    replay_end_frames, replay_request_frames,
};
use serde_json::Value;

use crate::fixtures::{RECORDED, REPLAYED, array, bytes, from_hex, int, json, messages, text};

const TOPIC: &str = "kv@0";

#[test]
fn published_messages() {
    for (_, recorded) in RECORDED {
        for message in messages(&json(recorded)) {
            let parsed = parse_publish(&message.frames).unwrap();
            assert_eq!(parsed.topic, Some(TOPIC.as_bytes()));
            assert_eq!(parsed.seq, message.seq);
            assert_eq!(publish_frames(TOPIC, parsed.seq, parsed.payload)[..], message.frames);
        }
    }
}

/// The frames of a recorded message; a payload that was cut for the file is left as its beginning.
fn frames(message: &Value) -> Vec<Vec<u8>> {
    let whole = |frame: &Value| from_hex(text(frame).split("...").next().unwrap());
    array(message).iter().map(whole).collect()
}

#[test]
fn recorded_replays() {
    for replayed in REPLAYED {
        let replayed = json(replayed);
        for (name, replay) in replayed["replays"].as_object().unwrap() {
            let from_seq: u64 = int(&replay["from_seq"]);
            let is_req = replay["socket"] == "REQ";
            let sent: Vec<Vec<u8>> = array(&replay["sent_frames_hex"]).iter().map(bytes).collect();
            let request = replay_request_frames(from_seq);
            // A REQ socket adds the first frame itself.
            assert_eq!(request[usize::from(is_req)..], sent, "{name}");
            assert_eq!(parse_replay_request(&request), Ok(from_seq));

            let received = array(&replay["received"]);
            for (index, message) in received.iter().enumerate() {
                let frames = frames(message);
                let reply = parse_replay_reply(&frames).unwrap();
                let is_last = index + 1 == received.len() && !is_req;
                let built = match reply {
                    ReplayReply::Batch(BatchFrames { topic, seq, payload }) => {
                        assert!(!is_last && seq >= from_seq, "{name}");
                        assert_eq!(topic, Some(TOPIC.as_bytes()));
                        if !text(&message[message.as_array().unwrap().len() - 1]).contains("...") {
                            EventBatch::decode(payload).unwrap();
                        }
                        replay_batch_frames(ReplayForm::WithTopic(TOPIC), seq, payload)
                    }
                    ReplayReply::End => {
                        assert!(is_last, "{name}");
                        replay_end_frames(ReplayForm::WithTopic(TOPIC))
                    }
                };
                assert_eq!(built[usize::from(is_req)..], frames, "{name}");
            }
        }
    }
}

#[test]
fn replies_without_a_topic() {
    let batch = replay_batch_frames(ReplayForm::WithoutTopic, 7, b"payload");
    assert_eq!(batch, [&b""[..], &[0, 0, 0, 0, 0, 0, 0, 7], b"payload"]);
    let parsed = ReplayReply::Batch(BatchFrames { topic: None, seq: 7, payload: b"payload" });
    assert_eq!(parse_replay_reply(&batch), Ok(parsed));
    // As a REQ socket gives it.
    assert_eq!(parse_replay_reply(&batch[1..]), Ok(parsed));

    let end = replay_end_frames(ReplayForm::WithoutTopic);
    assert_eq!(end, [&b""[..], &[0xff; 8], b""]);
    assert_eq!(parse_replay_reply(&end), Ok(ReplayReply::End));
    assert_eq!(parse_replay_reply(&end[1..]), Ok(ReplayReply::End));
}

#[test]
fn an_empty_topic_is_one() {
    let batch = replay_batch_frames(ReplayForm::WithTopic(""), 7, b"payload");
    let parsed = BatchFrames { topic: Some(b""), seq: 7, payload: b"payload" };
    assert_eq!(parse_replay_reply(&batch), Ok(ReplayReply::Batch(parsed)));
    assert_eq!(parse_publish(&publish_frames("", 7, b"payload")), Ok(parsed));
}

#[test]
fn frames_that_are_no_message() {
    let none: [&[u8]; 0] = [];
    let seq = [0_u8; 8];
    assert_eq!(parse_publish(&none), Err(FrameError::Count { expected: "3", found: 0 }));
    assert_eq!(
        parse_publish(&[b"".as_slice(), &seq, b"", b""]),
        Err(FrameError::Count { expected: "3", found: 4 })
    );
    assert_eq!(
        parse_publish(&[b"".as_slice(), &seq[..7], b""]),
        Err(FrameError::SeqLength { found: 7 })
    );
    assert_eq!(
        parse_replay_reply(&[b"identity".as_slice(), b"", &seq, b""]),
        Err(FrameError::Delimiter { found: 8 })
    );
    assert_eq!(parse_replay_reply(&[seq]), Err(FrameError::Count { expected: "2 to 4", found: 1 }));
    assert_eq!(parse_replay_request(&[seq]), Err(FrameError::Count { expected: "2", found: 1 }));
}

#[test]
fn replay_starts_are_read_as_vllm_reads_them() {
    let start = |frame: &[u8]| parse_replay_request(&[b"any", frame]);
    assert_eq!(start(b""), Ok(0));
    assert_eq!(start(&[1, 2]), Ok(258));
    assert_eq!(start(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 9]), Ok(9));
    assert_eq!(start(&[1, 0, 0, 0, 0, 0, 0, 0, 0]), Ok(END_SEQ));
}
