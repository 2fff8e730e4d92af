//! Reads the fields that come in several shapes, without a tree and without copies.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Content, Part, Prompt, Prompts, Text};

/// A value, or `None` where it has another form: engines read `"16"` and `16.0` as 16, or refuse it themselves.
pub(super) fn lax<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let raw = <&'de RawValue>::deserialize(from)?;
    Ok(serde_json::from_str(raw.get()).ok())
}

/// A shape that is a string or a sequence.
trait StringOrSequence<'de>: Sized {
    const EXPECTED: &'static str;
    fn string(text: Cow<'de, str>) -> Self;
    fn sequence<A: SeqAccess<'de>>(items: A) -> Result<Self, A::Error>;
}

struct ShapeVisitor<T>(std::marker::PhantomData<T>);

impl<'de, T: StringOrSequence<'de>> Visitor<'de> for ShapeVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<T, E> {
        Ok(T::string(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Ok(T::string(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<T, A::Error> {
        T::sequence(items)
    }
}

impl<'de> StringOrSequence<'de> for Text<'de> {
    const EXPECTED: &'static str = "a string";

    fn string(text: Cow<'de, str>) -> Self {
        Self(text)
    }

    fn sequence<A: SeqAccess<'de>>(_: A) -> Result<Self, A::Error> {
        Err(A::Error::custom("expected a string"))
    }
}

impl<'de> StringOrSequence<'de> for Content<'de> {
    const EXPECTED: &'static str = "a string or a list of content parts";

    fn string(text: Cow<'de, str>) -> Self {
        Self::Text(text)
    }

    fn sequence<A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = items.next_element()? {
            parts.push(part);
        }
        Ok(Self::Parts(parts))
    }
}

impl<'de> StringOrSequence<'de> for Prompts<'de> {
    const EXPECTED: &'static str = "a string, a list of token ids, or a list of either";

    fn string(text: Cow<'de, str>) -> Self {
        Self { first: Prompt::Text(text), are_several: false }
    }

    fn sequence<A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        /// A token id, or one of several prompts.
        enum Item<'a> {
            Id(u32),
            Prompt(Prompt<'a>),
        }

        struct ItemVisitor;

        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id, a string or a list of token ids")
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Item<'de>, E> {
                u32::try_from(id).map(Item::Id).map_err(|_| E::custom("a token id is over 32 bits"))
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Item<'de>, E> {
                Ok(Item::Prompt(Prompt::Text(Cow::Borrowed(text))))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Item<'de>, E> {
                Ok(Item::Prompt(Prompt::Text(Cow::Owned(text.to_owned()))))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut ids: A) -> Result<Item<'de>, A::Error> {
                let mut list = Vec::new();
                while let Some(id) = ids.next_element()? {
                    list.push(id);
                }
                Ok(Item::Prompt(Prompt::Ids(list)))
            }
        }

        impl<'de> Deserialize<'de> for Item<'de> {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(ItemVisitor)
            }
        }

        let mut ids = Vec::new();
        let (mut first, mut count) = (None, 0);
        while let Some(item) = items.next_element()? {
            match item {
                Item::Id(id) => ids.push(id),
                Item::Prompt(prompt) => {
                    count += 1;
                    first = first.or(Some(prompt));
                }
            }
        }
        Ok(Self { first: first.unwrap_or(Prompt::Ids(ids)), are_several: count > 1 })
    }
}

macro_rules! deserialize_shape {
    ($($shape:ident)+) => {$(
        impl<'de: 'a, 'a> Deserialize<'de> for $shape<'a> {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(ShapeVisitor::<$shape<'de>>(std::marker::PhantomData))
            }
        }
    )+};
}
deserialize_shape!(Text Content Prompts);

impl<'de: 'a, 'a> Deserialize<'de> for Part<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Fields<'a> {
            #[serde(borrow)]
            text: Text<'a>,
        }

        let raw = <&'de RawValue>::deserialize(from)?;
        let text = serde_json::from_str(raw.get()).map(|Fields { text }| text.0);
        Ok(Self(text.unwrap_or(Cow::Borrowed(raw.get()))))
    }
}
