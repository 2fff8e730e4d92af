//! JSON as a chat template sees it: read into template values, and written as Python's `json.dumps` writes it.
//!
//! Numbers keep their kind (`1` and `1.0` differ) and maps their order. What Python holds and a template value here
//! does not (integers beyond 64 bits) is an error, since it would be written differently.

use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{Kwargs, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// A JSON value as a template value.
#[derive(Clone, Debug)]
pub(crate) struct Json(pub(crate) Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct JsonVisitor;

        impl<'de> Visitor<'de> for JsonVisitor {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json(Value::from(())))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json(Value::from(value)))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json(Value::from(value)))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json(Value::from(value)))
            }

            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Json, E> {
                // serde_json gives integers beyond 64 bits as floats too.
                const LIMIT: f64 = 9_223_372_036_854_775_808.0;
                if value.abs() >= LIMIT {
                    return Err(E::custom("a number of 64 bits or more is not supported"));
                }
                Ok(Json(float(value)))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json(Value::from(value)))
            }

            fn visit_string<E>(self, value: String) -> Result<Json, E> {
                Ok(Json(Value::from(value)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
                let mut values = Vec::new();
                while let Some(Json(item)) = items.next_element()? {
                    values.push(item);
                }
                Ok(Json(Value::from(values)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
                let mut pairs = Vec::new();
                while let Some((key, Json(value))) = entries.next_entry::<String, Json>()? {
                    pairs.push((key, value));
                }
                Ok(Json(Value::from_pairs(pairs)))
            }
        }

        from.deserialize_any(JsonVisitor)
    }
}

/// Reads a map with its entries in order, the last of equal keys winning, as Python's `json.loads` does.
pub(crate) fn entries<'de, D>(from: D) -> Result<Option<Vec<(String, Value)>>, D::Error>
where
    D: Deserializer<'de>,
{
    match Option::<Json>::deserialize(from)? {
        None => Ok(None),
        Some(Json(map)) if map.is_none() => Ok(None),
        Some(Json(map)) => match pairs(&map) {
            Some(pairs) => Ok(Some(pairs)),
            None => Err(D::Error::custom("expected a map")),
        },
    }
}

/// The entries of a map with text keys, in order.
pub(crate) fn pairs(map: &Value) -> Option<Vec<(String, Value)>> {
    if map.kind() != ValueKind::Map {
        return None;
    }
    let mut pairs = Vec::with_capacity(map.len().unwrap_or(0));
    for key in map.try_iter().ok()? {
        let value = map.get_item(&key).ok()?;
        pairs.push((key.as_str()?.to_owned(), value));
    }
    Some(pairs)
}

/// A float that Python writes in another way than the template engine does (`1e-07`).
///
/// It can be written out, alone, in lists and as JSON; whatever else a template does with it fails.
#[derive(Debug)]
pub(crate) struct PythonFloat(f64);

impl Object for PythonFloat {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&python_float(self.0))
    }
}

fn float(value: f64) -> Value {
    let plain = Value::from(value);
    if plain.to_string() == python_float(value) {
        return plain;
    }
    Value::from_object(PythonFloat(value))
}

/// How `json.dumps` is asked to write.
struct Style {
    item: String,
    key: String,
    indent: Option<String>,
    sort_keys: bool,
    ensure_ascii: bool,
}

/// The `tojson` filter of Hugging Face's template environment:
/// `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, without HTML escapes.
#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments so")]
pub(crate) fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    separators: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    // Each may be given by place or by name; nobody gives the fourth by place.
    let ensure_ascii = ensure_ascii.or(named.get("ensure_ascii")?);
    let indent: Option<Value> = indent.or(named.get("indent")?);
    let separators: Option<Value> = separators.or(named.get("separators")?);
    let sort_keys = named.get::<Option<bool>>("sort_keys")?;
    named.assert_all_used()?;
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| indent_text(&indent));
    let indent = indent.transpose()?;
    let (item, key) = match separators.filter(|pair| !pair.is_none()) {
        Some(pair) => (separator(&pair, 0)?, separator(&pair, 1)?),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let style = Style {
        item,
        key,
        indent,
        sort_keys: sort_keys.unwrap_or(false),
        ensure_ascii: ensure_ascii.unwrap_or(false),
    };
    let mut out = String::new();
    style.value(value, 0, &mut out)?;
    Ok(Value::from(out))
}

fn indent_text(indent: &Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return Ok(text.to_owned());
    }
    match indent.as_usize() {
        Some(spaces @ 0..=64) => Ok(" ".repeat(spaces)),
        _ => Err(refused("tojson: indent must be a small number or a string")),
    }
}

fn separator(pair: &Value, index: usize) -> Result<String, Error> {
    let text = pair.get_item_by_index(index)?;
    let text = text.as_str().ok_or_else(|| refused("tojson: separators must be two strings"))?;
    Ok(text.to_owned())
}

fn refused(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

impl Style {
    fn value(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, out)?,
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq => {
                let items = value.try_iter()?;
                self.list(items, depth, ['[', ']'], out, |item, out| {
                    self.value(&item, depth + 1, out)
                })?;
            }
            ValueKind::Map => self.map(value, depth, out)?,
            ValueKind::Plain if value.downcast_object_ref::<PythonFloat>().is_some() => {
                let _infallible = write!(out, "{value}");
            }
            kind => {
                let message = format!("tojson: {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::BadSerialization, message));
            }
        }
        Ok(())
    }

    fn map(&self, map: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let mut keys: Vec<Value> = map.try_iter()?.collect();
        if self.sort_keys {
            if keys.iter().any(|key| key.as_str().is_none()) {
                return Err(refused("tojson: only string keys can be sorted"));
            }
            // Python sorts by code point, which is the order of UTF-8.
            keys.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
        self.list(keys.into_iter(), depth, ['{', '}'], out, |key, out| {
            let value = map.get_item(&key)?;
            match key.kind() {
                ValueKind::String => self.text(key.as_str().unwrap_or_default(), out),
                ValueKind::Bool | ValueKind::None | ValueKind::Number => {
                    out.push('"');
                    self.value(&key, depth, out)?;
                    out.push('"');
                }
                _ => {
                    return Err(refused("tojson: keys must be strings, numbers, booleans or none"));
                }
            }
            out.push_str(&self.key);
            self.value(&value, depth + 1, out)
        })
    }

    fn list(
        &self,
        items: impl Iterator<Item = Value>,
        depth: usize,
        [open, close]: [char; 2],
        out: &mut String,
        mut write: impl FnMut(Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        const DEPTH_MAX: usize = 100;
        if depth > DEPTH_MAX {
            return Err(refused("tojson: the value is nested too deeply"));
        }
        out.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                out.push_str(&self.item);
            }
            is_empty = false;
            self.line(depth + 1, out);
            write(item, out)?;
        }
        if !is_empty {
            self.line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _infallible = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value, out: &mut String) -> Result<(), Error> {
    if value.is_integer() {
        let _infallible = write!(out, "{value}");
        return Ok(());
    }
    let float = f64::try_from(value.clone())?;
    out.push_str(&python_float(float));
    Ok(())
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16.
fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumps(json: &str) -> String {
        let Json(value) = serde_json::from_str(json).unwrap();
        tojson(&value, None, None, None, Kwargs::from_iter([] as [(&str, Value); 0]))
            .unwrap()
            .to_string()
    }

    #[test]
    fn maps_keep_their_order_and_numbers_their_kind() {
        assert_eq!(
            dumps(r#"{"b":1,"a":[1.0,-0.5,true,null,{}],"c":[]}"#),
            r#"{"b": 1, "a": [1.0, -0.5, true, null, {}], "c": []}"#
        );
        assert_eq!(
            dumps("[18446744073709551615,-9223372036854775808]"),
            "[18446744073709551615, -9223372036854775808]"
        );
        assert!(serde_json::from_str::<Json>("18446744073709551616").is_err());
        assert_eq!(dumps("[1e-7,{\"a\":1e17}]"), "[1e-07, {\"a\": 1e+17}]");
        let Json(list) = serde_json::from_str("[1e-7,0.5]").unwrap();
        assert_eq!(list.to_string(), "[1e-07, 0.5]");
    }

    /// Values from `CPython` 3.11: `repr(x)`.
    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, text) in [
            (100_000.0, "100000.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (123_456_789.125, "123456789.125"),
            (1e300, "1e+300"),
            (-0.0, "-0.0"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn text_is_escaped_as_python_escapes_it() {
        assert_eq!(
            dumps(r#""a\"\\\/\n\t\u0001\u007f é < ' 😀""#),
            "\"a\\\"\\\\/\\n\\t\\u0001\u{7f} é < ' 😀\""
        );
        let value = Value::from("é😀\u{7f}");
        let ascii =
            tojson(&value, Some(true), None, None, Kwargs::from_iter([] as [(&str, Value); 0]));
        assert_eq!(ascii.unwrap().to_string(), "\"\\u00e9\\ud83d\\ude00\\u007f\"");
    }
}
