//! Reading the fields of a JSON body as vLLM's models (pydantic, lax mode) do, with their errors.

use serde_json::{Map, Value};

use crate::api_error::ApiError;

/// The object of a request body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Where it is: `body`, or `body.stream_options`.
    loc: &'a str,
}

/// The body as a JSON object.
pub(crate) fn parse_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if body.is_empty() {
        return Err(ApiError::missing("body", "None".to_owned()));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(ApiError::Validation {
            kind: "dict_type",
            loc: "body".to_owned(),
            message: "Input should be a valid dictionary",
            input: describe(&other),
            context: String::new(),
        }),
        Err(error) => Err(invalid_json(body, &error)),
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn of_body(object: &'a Map<String, Value>) -> Self {
        Self { object, loc: "body" }
    }

    /// The value, unless it is absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// The value of a field that must be there.
    pub(crate) fn required(&self, name: &str) -> Result<&'a Value, ApiError> {
        let missing = || ApiError::missing(&self.path(name), describe_object(self.object));
        self.object.get(name).ok_or_else(missing)
    }

    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let (kind, message) = match value {
            Value::Number(number) => {
                if let Some(integer) = number.as_i64() {
                    return Ok(Some(integer));
                }
                match number.as_f64() {
                    #[expect(clippy::cast_possible_truncation, reason = "the cast saturates")]
                    Some(float) if float.fract() == 0.0 => return Ok(Some(float as i64)),
                    _ => (
                        "int_from_float",
                        "Input should be a valid integer, got a number with a fractional part",
                    ),
                }
            }
            Value::Bool(value) => return Ok(Some(i64::from(*value))),
            Value::String(text) => match text.trim().parse() {
                Ok(integer) => return Ok(Some(integer)),
                Err(_) => (
                    "int_parsing",
                    "Input should be a valid integer, unable to parse string as an integer",
                ),
            },
            _ => ("int_type", "Input should be a valid integer"),
        };
        Err(self.invalid(name, value, kind, message))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let (kind, message) = match value {
            Value::Number(number) => return Ok(number.as_f64()),
            Value::Bool(value) => return Ok(Some(f64::from(*value))),
            Value::String(text) => match text.trim().parse() {
                Ok(number) => return Ok(Some(number)),
                Err(_) => (
                    "float_parsing",
                    "Input should be a valid number, unable to parse string as a number",
                ),
            },
            _ => ("float_type", "Input should be a valid number"),
        };
        Err(self.invalid(name, value, kind, message))
    }

    /// False if absent.
    pub(crate) fn boolean(&self, name: &str) -> Result<bool, ApiError> {
        let Some(value) = self.get(name) else { return Ok(false) };
        match value {
            Value::Bool(value) => Ok(*value),
            Value::Number(number) if number.as_u64() == Some(0) => Ok(false),
            Value::Number(number) if number.as_u64() == Some(1) => Ok(true),
            Value::String(_) | Value::Number(_) => {
                let message = "Input should be a valid boolean, unable to interpret input";
                Err(self.invalid(name, value, "bool_parsing", message))
            }
            _ => Err(self.invalid(name, value, "bool_type", "Input should be a valid boolean")),
        }
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => {
                Err(self.invalid(name, other, "string_type", "Input should be a valid string"))
            }
        }
    }

    pub(crate) fn list(&self, name: &str) -> Result<&'a [Value], ApiError> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => {
                Err(self.invalid(name, other, "list_type", "Input should be a valid list"))
            }
        }
    }

    /// Token ids.
    pub(crate) fn tokens(&self, name: &str) -> Result<Vec<u64>, ApiError> {
        let id = |value: &Value| {
            let wrong = || self.invalid(name, value, "int_type", "Input should be a valid integer");
            value.as_u64().ok_or_else(wrong)
        };
        self.list(name)?.iter().map(id).collect()
    }

    /// The body's field `name`, an object; `loc` is its path.
    pub(crate) fn object(&self, name: &str, loc: &'a str) -> Result<Option<Fields<'a>>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { object, loc })),
            Some(other) => {
                let message = "Input should be a valid dictionary";
                Err(self.invalid(name, other, "dict_type", message))
            }
        }
    }

    pub(crate) fn invalid(
        &self,
        name: &str,
        value: &Value,
        kind: &'static str,
        message: &'static str,
    ) -> ApiError {
        let (loc, input) = (self.path(name), describe(value));
        ApiError::Validation { kind, loc, message, input, context: String::new() }
    }

    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.loc)
    }
}

/// A value as vLLM's messages show it.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("<list of {} items>", list.len()),
        Value::Object(object) => describe_object(object),
    }
}

fn describe_object(object: &Map<String, Value>) -> String {
    format!("<dict of {} items>", object.len())
}

/// The error of Python's `json`: its position counts from the start of the body, in bytes here. Which of its texts fits
/// is guessed from the character before.
fn invalid_json(body: &[u8], error: &serde_json::Error) -> ApiError {
    let line_starts =
        body.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let line = std::iter::once(0).chain(line_starts).nth(error.line().saturating_sub(1));
    let at = line.unwrap_or(0) + error.column();
    let at = if error.is_eof() { body.len() } else { at.saturating_sub(1).min(body.len()) };
    let before = body[..at].iter().rev().find(|byte| !byte.is_ascii_whitespace());
    let what = match before {
        None | Some(b'[' | b':') => "'Expecting value'",
        Some(b'{') => "'Expecting property name enclosed in double quotes'",
        Some(_) => "\"Expecting ',' delimiter\"",
    };
    ApiError::Validation {
        kind: "json_invalid",
        loc: format!("body.{at}"),
        message: "JSON decode error",
        input: "<dict of 0 items>".to_owned(),
        context: format!(", 'ctx': {{'error': {what}}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str, read: impl Fn(&Fields<'_>) -> Result<(), ApiError>) -> String {
        let result = parse_object(body.as_bytes());
        let error = result.and_then(|object| read(&Fields::of_body(&object))).unwrap_err();
        error.to_string().replace("1 validation error:\n  ", "")
    }

    #[test]
    fn json_errors_have_pythons_positions() {
        let of = |body| refusal(body, |_| Ok(()));
        assert_eq!(
            of("{\"a\": 1 \"b\": 2}"),
            "{'type': 'json_invalid', 'loc': 'body.8', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', \
             'ctx': {'error': \"Expecting ',' delimiter\"}}"
        );
        assert!(of("{\n  x").contains("'loc': 'body.4'"), "{}", of("{\n  x"));
        assert!(of("{\"a\": ").contains("'loc': 'body.6', 'msg': 'JSON decode error'"));
        assert!(of("[1]").contains("'loc': 'body', 'msg': 'Input should be a valid dictionary'"));
    }

    #[test]
    fn types_are_read_as_laxly_as_pydantic_does() {
        let body = r#"{"a": 3.0, "b": " 4 ", "c": true, "d": null, "e": 0, "f": "0.5"}"#;
        let object = parse_object(body.as_bytes()).unwrap();
        let fields = Fields::of_body(&object);
        assert_eq!(fields.integer("a"), Ok(Some(3)));
        assert_eq!(fields.integer("b"), Ok(Some(4)));
        assert_eq!(fields.integer("c"), Ok(Some(1)));
        assert_eq!(fields.integer("d"), Ok(None));
        assert_eq!(fields.boolean("e"), Ok(false));
        assert_eq!(fields.number("f"), Ok(Some(0.5)));
        let wrong = refusal(r#"{"a": 1.5}"#, |fields| fields.integer("a").map(|_| ()));
        assert!(wrong.contains("'loc': 'body.a', 'msg': 'Input should be a valid integer, got a"));
    }
}
