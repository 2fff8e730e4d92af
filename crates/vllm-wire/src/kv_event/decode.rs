//! Reading a batch that anyone may have sent: no length is believed before the bytes are seen, no
//! value makes it recurse, and what it allocates is a small multiple of the payload.

use std::str;

use rmp::Marker;

use super::{
    BlockRemoved, BlockStored, EventBatch, EventExtraKey, ExternalHash, HashBytes, KvEvent,
    RawValue, name,
};

/// Items for which room is made before they are read; a longer list grows as it is read.
const PREALLOCATED_ITEMS_MAX: usize = 4096;

/// Why a payload is no batch. Positions are byte offsets in the payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload ends before the value that is being read does.
    #[error("the payload ends inside a value, at byte {at}; it was cut off or is not MessagePack")]
    Truncated {
        /// Where the missing bytes would be.
        at: usize,
    },
    /// Another type of value than the field has.
    #[error(
        "byte {at}: {field} should be {expected} but is {found}; the sender is not a vLLM release this reader knows"
    )]
    WrongType {
        /// Where the value begins.
        at: usize,
        /// The field.
        field: &'static str,
        /// The type it has.
        expected: &'static str,
        /// The type that was there.
        found: &'static str,
    },
    /// An integer that the field cannot hold.
    #[error("byte {at}: {field} is {value}, which is out of its range")]
    OutOfRange {
        /// Where the value begins.
        at: usize,
        /// The field.
        field: &'static str,
        /// The integer.
        value: i128,
    },
    /// A block hash that is neither a number nor 1 to 32 bytes.
    #[error("byte {at}: a block hash of {len} bytes; vLLM's have 16 or 32")]
    HashLength {
        /// Where the value begins.
        at: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// A text that is not UTF-8.
    #[error("byte {at}: {field} is not UTF-8")]
    NotUtf8 {
        /// Where the text begins.
        at: usize,
        /// The field.
        field: &'static str,
    },
    /// A batch or event without a field that it must have.
    #[error("{of} at byte {at} has no {field}")]
    MissingField {
        /// Where the batch or event begins.
        at: usize,
        /// What it is.
        of: &'static str,
        /// The field.
        field: &'static str,
    },
    /// An event of another type than the three of vLLM 0.32.0.
    #[error(
        "byte {at}: unknown event type `{event_type}`; known are BlockStored, BlockRemoved and AllBlocksCleared"
    )]
    UnknownEventType {
        /// Where the event begins.
        at: usize,
        /// Its type, as sent.
        event_type: String,
    },
    /// Bytes after the batch.
    #[error("the batch ends at byte {at} but the payload does not; is it two messages in one?")]
    TrailingBytes {
        /// Where the batch ends.
        at: usize,
    },
}

type Result<T> = std::result::Result<T, DecodeError>;

impl EventBatch {
    /// Reads one message's payload.
    ///
    /// Takes events as maps (vLLM 0.24 and later) and as arrays (before), hashes as numbers and as
    /// bytes, fields in any order and nulls for the optional ones. Unknown fields of an event,
    /// further items of an array and a missing rank are accepted: releases add fields at the end.
    /// Negative hashes, of early releases that used Python's `hash`, are read as their two's complement.
    ///
    /// Takes memory in proportion to `payload`, some hundred bytes per byte at worst and about one for
    /// vLLM's own; limiting its length is up to the caller.
    ///
    /// # Errors
    /// [`DecodeError`] if `payload` is not exactly one batch. An event of an unknown type is such an
    /// error too, since it may have changed the cache: a caller should treat the batch as lost.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut reader = Reader { bytes: payload, at: 0 };
        let len = reader.array_len("the batch")?;
        let missing = |field| DecodeError::MissingField { at: 0, of: "the batch", field };
        if len < 1 {
            return Err(missing("ts"));
        }
        let ts = reader.float("ts")?;
        if len < 2 {
            return Err(missing("events"));
        }
        let events = reader.list("events", event)?;
        let data_parallel_rank = match len {
            2 => None,
            _ => reader.nullable(|r| r.int("data_parallel_rank"))?,
        };
        for _ in 3..len {
            reader.skip()?;
        }
        if reader.at < payload.len() {
            return Err(DecodeError::TrailingBytes { at: reader.at });
        }
        Ok(Self { ts, events, data_parallel_rank })
    }
}

/// The fields of any event; which of them it must have depends on its type.
#[derive(Default)]
struct Fields {
    block_hashes: Option<Vec<ExternalHash>>,
    /// The outer `None` is a parent that was not sent, which must not pass for no parent.
    #[expect(clippy::option_option, reason = "null and not sent are different here")]
    parent_block_hash: Option<Option<ExternalHash>>,
    token_ids: Option<Vec<u32>>,
    block_size: Option<u32>,
    lora_id: Option<i64>,
    medium: Option<String>,
    lora_name: Option<String>,
    extra_keys: Option<Vec<Option<Vec<EventExtraKey>>>>,
    group_idx: Option<u32>,
    kv_cache_spec_kind: Option<String>,
    kv_cache_spec_sliding_window: Option<u32>,
    locality: Option<String>,
    ownership: Option<String>,
    session_id: Option<String>,
}

fn event(r: &mut Reader<'_>) -> Result<KvEvent> {
    let at = r.at;
    let mut fields = Fields::default();
    let event_type = match r.container("an event")? {
        Container::Map(len) => {
            let mut event_type = None;
            for _ in 0..len {
                match r.str("an event's key")? {
                    name::TYPE => event_type = Some(r.str(name::TYPE)?),
                    key => fields.read(key, r)?,
                }
            }
            event_type
        }
        Container::Array(0) => None,
        Container::Array(len) => {
            let event_type = r.str(name::TYPE)?;
            let names = match event_type {
                name::BLOCK_STORED => name::STORED_FIELDS,
                name::BLOCK_REMOVED => name::REMOVED_FIELDS,
                _ => &[],
            };
            for index in 0..len - 1 {
                fields.read(names.get(index).copied().unwrap_or_default(), r)?;
            }
            Some(event_type)
        }
    };
    match event_type {
        Some(name::BLOCK_STORED) => fields.block_stored(at).map(KvEvent::BlockStored),
        Some(name::BLOCK_REMOVED) => fields.block_removed(at).map(KvEvent::BlockRemoved),
        Some(name::ALL_BLOCKS_CLEARED) => Ok(KvEvent::AllBlocksCleared),
        Some(other) => {
            Err(DecodeError::UnknownEventType { at, event_type: other.chars().take(64).collect() })
        }
        None => Err(DecodeError::MissingField { at, of: "an event", field: name::TYPE }),
    }
}

impl Fields {
    /// Reads the value of the field `name`, or skips it if no event has such a field.
    fn read(&mut self, name: &str, r: &mut Reader<'_>) -> Result<()> {
        match name {
            name::BLOCK_HASHES => {
                self.block_hashes = Some(r.list(name::BLOCK_HASHES, external_hash)?);
            }
            name::PARENT_BLOCK_HASH => self.parent_block_hash = Some(r.nullable(external_hash)?),
            name::TOKEN_IDS => {
                self.token_ids = Some(r.list(name::TOKEN_IDS, |r| r.int("a token id"))?);
            }
            name::BLOCK_SIZE => self.block_size = Some(r.int(name::BLOCK_SIZE)?),
            name::LORA_ID => self.lora_id = r.nullable(|r| r.int(name::LORA_ID))?,
            name::MEDIUM => self.medium = r.nullable(|r| r.string(name::MEDIUM))?,
            name::LORA_NAME => self.lora_name = r.nullable(|r| r.string(name::LORA_NAME))?,
            name::EXTRA_KEYS => self.extra_keys = r.nullable(extra_keys)?,
            name::GROUP_IDX => self.group_idx = r.nullable(|r| r.int(name::GROUP_IDX))?,
            name::SPEC_KIND => {
                self.kv_cache_spec_kind = r.nullable(|r| r.string(name::SPEC_KIND))?;
            }
            name::SLIDING_WINDOW => {
                self.kv_cache_spec_sliding_window = r.nullable(|r| r.int(name::SLIDING_WINDOW))?;
            }
            name::LOCALITY => self.locality = r.nullable(|r| r.string(name::LOCALITY))?,
            name::OWNERSHIP => self.ownership = r.nullable(|r| r.string(name::OWNERSHIP))?,
            name::SESSION_ID => self.session_id = r.nullable(|r| r.string(name::SESSION_ID))?,
            _ => r.skip()?,
        }
        Ok(())
    }

    fn block_stored(self, at: usize) -> Result<BlockStored> {
        let missing = |field| DecodeError::MissingField { at, of: name::BLOCK_STORED, field };
        Ok(BlockStored {
            block_hashes: self.block_hashes.ok_or(missing(name::BLOCK_HASHES))?,
            parent_block_hash: self.parent_block_hash.ok_or(missing(name::PARENT_BLOCK_HASH))?,
            token_ids: self.token_ids.ok_or(missing(name::TOKEN_IDS))?,
            block_size: self.block_size.ok_or(missing(name::BLOCK_SIZE))?,
            lora_id: self.lora_id,
            medium: self.medium,
            lora_name: self.lora_name,
            extra_keys: self.extra_keys,
            group_idx: self.group_idx,
            kv_cache_spec_kind: self.kv_cache_spec_kind,
            kv_cache_spec_sliding_window: self.kv_cache_spec_sliding_window,
            locality: self.locality,
            ownership: self.ownership,
            session_id: self.session_id,
        })
    }

    fn block_removed(self, at: usize) -> Result<BlockRemoved> {
        let missing = |field| DecodeError::MissingField { at, of: name::BLOCK_REMOVED, field };
        Ok(BlockRemoved {
            block_hashes: self.block_hashes.ok_or(missing(name::BLOCK_HASHES))?,
            medium: self.medium,
            group_idx: self.group_idx,
            locality: self.locality,
            ownership: self.ownership,
        })
    }
}

fn external_hash(r: &mut Reader<'_>) -> Result<ExternalHash> {
    const FIELD: &str = "a block hash";
    let at = r.at;
    match r.scalar()? {
        Scalar::Bytes(bytes) => HashBytes::new(bytes)
            .map(ExternalHash::Bytes)
            .ok_or(DecodeError::HashLength { at, len: bytes.len() }),
        Scalar::Unsigned(hash) => Ok(ExternalHash::Int(hash)),
        Scalar::Negative(hash) => Ok(ExternalHash::Int(hash.cast_unsigned())),
        other => Err(other.wrong_type(at, FIELD, "an integer or bytes")),
    }
}

fn extra_keys(r: &mut Reader<'_>) -> Result<Vec<Option<Vec<EventExtraKey>>>> {
    r.list(name::EXTRA_KEYS, |r| r.nullable(|r| r.list("a block's extra keys", extra_key)))
}

/// A key of a known shape, or the bytes of whatever else is there.
fn extra_key(r: &mut Reader<'_>) -> Result<EventExtraKey> {
    let start = r.at;
    r.skip()?;
    let raw = &r.bytes[start..r.at];
    Ok(known_extra_key(raw).unwrap_or_else(|| EventExtraKey::Other(RawValue(raw.into()))))
}

fn known_extra_key(raw: &[u8]) -> Option<EventExtraKey> {
    let mut r = Reader { bytes: raw, at: 0 };
    match r.scalar().ok()? {
        Scalar::Text(text) => str::from_utf8(text).ok().map(|s| EventExtraKey::Text(s.to_owned())),
        Scalar::Bytes(bytes) => HashBytes::new(bytes).map(EventExtraKey::Digest),
        Scalar::Array(2) => {
            let identifier = r.string("").ok()?;
            Some(EventExtraKey::Mm { identifier, offset: r.int("").ok()? })
        }
        _ => None,
    }
}

/// A value's head, with its content unless that is more values.
enum Scalar<'a> {
    Nil,
    Bool,
    Unsigned(u64),
    /// Below 0.
    Negative(i64),
    Float(f64),
    /// Not known to be UTF-8.
    Text(&'a [u8]),
    Bytes(&'a [u8]),
    Extension,
    /// That many values follow.
    Array(usize),
    /// That many pairs of values follow.
    Map(usize),
    /// `0xc1`, which the format never uses.
    Reserved,
}

impl Scalar<'_> {
    const fn wrong_type(
        &self,
        at: usize,
        field: &'static str,
        expected: &'static str,
    ) -> DecodeError {
        let found = match self {
            Self::Nil => "null",
            Self::Bool => "a boolean",
            Self::Unsigned(_) | Self::Negative(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::Extension => "an extension",
            Self::Array(_) => "an array",
            Self::Map(_) => "a map",
            Self::Reserved => "no MessagePack",
        };
        DecodeError::WrongType { at, field, expected, found }
    }
}

enum Container {
    Array(usize),
    Map(usize),
}

/// Reads values off the front of a payload.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(DecodeError::Truncated { at: self.bytes.len() })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let truncated = DecodeError::Truncated { at: self.bytes.len() };
        let (taken, _) = self.bytes[self.at..].split_first_chunk().ok_or(truncated)?;
        self.at += N;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8> {
        self.take_array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16> {
        self.take_array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take_array().map(u32::from_be_bytes)
    }

    fn len_u8(&mut self) -> Result<usize> {
        self.u8().map(usize::from)
    }

    fn len_u16(&mut self) -> Result<usize> {
        self.u16().map(usize::from)
    }

    fn len_u32(&mut self) -> Result<usize> {
        // Where it does not fit, the payload cannot be that long either.
        self.u32().map(|len| usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn scalar(&mut self) -> Result<Scalar<'a>> {
        Ok(match Marker::from_u8(self.u8()?) {
            Marker::Null => Scalar::Nil,
            Marker::True | Marker::False => Scalar::Bool,
            Marker::FixPos(value) => Scalar::Unsigned(value.into()),
            Marker::U8 => Scalar::Unsigned(self.u8()?.into()),
            Marker::U16 => Scalar::Unsigned(self.u16()?.into()),
            Marker::U32 => Scalar::Unsigned(self.u32()?.into()),
            Marker::U64 => Scalar::Unsigned(self.take_array().map(u64::from_be_bytes)?),
            Marker::FixNeg(value) => signed(value),
            Marker::I8 => signed(self.take_array().map(i8::from_be_bytes)?),
            Marker::I16 => signed(self.take_array().map(i16::from_be_bytes)?),
            Marker::I32 => signed(self.take_array().map(i32::from_be_bytes)?),
            Marker::I64 => signed(self.take_array().map(i64::from_be_bytes)?),
            Marker::F32 => Scalar::Float(self.take_array().map(f32::from_be_bytes)?.into()),
            Marker::F64 => Scalar::Float(self.take_array().map(f64::from_be_bytes)?),
            Marker::FixStr(len) => Scalar::Text(self.take(len.into())?),
            Marker::Str8 => Scalar::Text(self.len_u8().and_then(|len| self.take(len))?),
            Marker::Str16 => Scalar::Text(self.len_u16().and_then(|len| self.take(len))?),
            Marker::Str32 => Scalar::Text(self.len_u32().and_then(|len| self.take(len))?),
            Marker::Bin8 => Scalar::Bytes(self.len_u8().and_then(|len| self.take(len))?),
            Marker::Bin16 => Scalar::Bytes(self.len_u16().and_then(|len| self.take(len))?),
            Marker::Bin32 => Scalar::Bytes(self.len_u32().and_then(|len| self.take(len))?),
            Marker::FixArray(len) => Scalar::Array(len.into()),
            Marker::Array16 => Scalar::Array(self.len_u16()?),
            Marker::Array32 => Scalar::Array(self.len_u32()?),
            Marker::FixMap(len) => Scalar::Map(len.into()),
            Marker::Map16 => Scalar::Map(self.len_u16()?),
            Marker::Map32 => Scalar::Map(self.len_u32()?),
            Marker::FixExt1 => self.extension(1)?,
            Marker::FixExt2 => self.extension(2)?,
            Marker::FixExt4 => self.extension(4)?,
            Marker::FixExt8 => self.extension(8)?,
            Marker::FixExt16 => self.extension(16)?,
            Marker::Ext8 => self.len_u8().and_then(|len| self.extension(len))?,
            Marker::Ext16 => self.len_u16().and_then(|len| self.extension(len))?,
            Marker::Ext32 => self.len_u32().and_then(|len| self.extension(len))?,
            Marker::Reserved => Scalar::Reserved,
        })
    }

    fn extension(&mut self, len: usize) -> Result<Scalar<'a>> {
        let _type = self.u8()?;
        self.take(len)?;
        Ok(Scalar::Extension)
    }

    /// Skips one value, whatever it holds, without recursion.
    fn skip(&mut self) -> Result<()> {
        let mut values = 1_usize;
        while values > 0 {
            let at = self.at;
            let more = match self.scalar()? {
                Scalar::Array(len) => len,
                Scalar::Map(len) => len.saturating_mul(2),
                reserved @ Scalar::Reserved => {
                    return Err(reserved.wrong_type(at, "a value", "MessagePack"));
                }
                _ => 0,
            };
            values = (values - 1).saturating_add(more);
            // Each value takes a byte or more.
            if values > self.remaining() {
                return Err(DecodeError::Truncated { at: self.bytes.len() });
            }
        }
        Ok(())
    }

    fn is_null(&self) -> bool {
        self.bytes.get(self.at) == Some(&Marker::Null.to_u8())
    }

    fn nullable<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.is_null() {
            self.at += 1;
            return Ok(None);
        }
        read(self).map(Some)
    }

    fn list<T>(
        &mut self,
        field: &'static str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let len = self.array_len(field)?;
        let mut items = Vec::with_capacity(len.min(PREALLOCATED_ITEMS_MAX));
        for _ in 0..len {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn array_len(&mut self, field: &'static str) -> Result<usize> {
        let at = self.at;
        match self.scalar()? {
            Scalar::Array(len) => self.possible(len),
            other => Err(other.wrong_type(at, field, "an array")),
        }
    }

    fn container(&mut self, field: &'static str) -> Result<Container> {
        let at = self.at;
        match self.scalar()? {
            Scalar::Array(len) => self.possible(len).map(Container::Array),
            Scalar::Map(len) => self.possible(len).map(Container::Map),
            other => Err(other.wrong_type(at, field, "a map or an array")),
        }
    }

    /// A number of values that the rest of the payload has room for.
    fn possible(&self, len: usize) -> Result<usize> {
        let room = len <= self.remaining();
        room.then_some(len).ok_or(DecodeError::Truncated { at: self.bytes.len() })
    }

    fn int<T: TryFrom<u64> + TryFrom<i64>>(&mut self, field: &'static str) -> Result<T> {
        let at = self.at;
        let (fitting, value) = match self.scalar()? {
            Scalar::Unsigned(value) => (T::try_from(value).ok(), i128::from(value)),
            Scalar::Negative(value) => (T::try_from(value).ok(), i128::from(value)),
            other => return Err(other.wrong_type(at, field, "an integer")),
        };
        fitting.ok_or(DecodeError::OutOfRange { at, field, value })
    }

    #[expect(clippy::cast_precision_loss, reason = "a whole number of seconds is a time too")]
    fn float(&mut self, field: &'static str) -> Result<f64> {
        let at = self.at;
        match self.scalar()? {
            Scalar::Float(value) => Ok(value),
            Scalar::Unsigned(value) => Ok(value as f64),
            Scalar::Negative(value) => Ok(value as f64),
            other => Err(other.wrong_type(at, field, "a number")),
        }
    }

    fn str(&mut self, field: &'static str) -> Result<&'a str> {
        let at = self.at;
        match self.scalar()? {
            Scalar::Text(text) => {
                str::from_utf8(text).map_err(|_| DecodeError::NotUtf8 { at, field })
            }
            other => Err(other.wrong_type(at, field, "a text")),
        }
    }

    fn string(&mut self, field: &'static str) -> Result<String> {
        self.str(field).map(str::to_owned)
    }
}

fn signed<'a>(value: impl Into<i64>) -> Scalar<'a> {
    let value = value.into();
    u64::try_from(value).map_or(Scalar::Negative(value), Scalar::Unsigned)
}
