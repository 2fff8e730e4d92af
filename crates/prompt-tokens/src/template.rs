//! Chat templates, in the environment that Hugging Face's `transformers` gives them.
//!
//! That is Jinja with `trim_blocks`, `lstrip_blocks`, loop controls, `tojson` as `json.dumps`, `raise_exception` and
//! `strftime_now` (`transformers/utils/chat_template_utils.py`). `{% generation %}` marks text for training and renders
//! as its body.

use std::sync::{Arc, Mutex};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat;

use crate::clock::{Now, strftime};
use crate::content_format::{ContentFormat, detect};
use crate::json::{PythonFloat, tojson};

const NAME: &str = "chat";

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    source: String,
    content_format: ContentFormat,
}

/// Why a template gave no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RenderError {
    /// The template called `raise_exception`.
    Raised(String),
    /// The template asked for the time, and none was given.
    NoClock,
    /// Anything else: perhaps the template's fault, perhaps a feature that the renderer here does not have.
    Failed(String),
}

impl Template {
    /// Compiles a template.
    pub(crate) fn new(source: &str) -> Result<Self, Error> {
        // Jinja reads every line end as a line feed.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let source = without_generation_marks(&source);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        let content_format = detect(&source, &syntax);
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_test("iterable", is_iterable);
        environment.add_test("sequence", is_iterable);
        environment.add_test("number", is_number);
        environment.add_template_owned(NAME, source.clone())?;
        Ok(Self { environment, source, content_format })
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn content_format(&self) -> ContentFormat {
        self.content_format
    }

    /// Renders the template. `now` answers `strftime_now`.
    pub(crate) fn render(
        &self,
        mut variables: Vec<(String, Value)>,
        now: Option<Now>,
    ) -> Result<String, RenderError> {
        // What a function of the template failed with; the renderer's error would bury it in places and sources.
        let failure = Arc::new(Mutex::new(None));
        let (raised, clock) = (Note(Arc::clone(&failure)), Note(Arc::clone(&failure)));
        let raise = move |message: String| -> Result<Value, Error> {
            Err(raised.stop(RenderError::Raised(message)))
        };
        let strftime_now = move |format: String| match now {
            None => Err(clock.stop(RenderError::NoClock)),
            Some(now) => strftime(&format, now).map(Value::from).ok_or_else(|| {
                clock.stop(RenderError::Failed(format!("strftime_now({format:?})")))
            }),
        };
        variables.push(("raise_exception".to_owned(), Value::from_function(raise)));
        variables.push(("strftime_now".to_owned(), Value::from_function(strftime_now)));
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        template.render(Value::from_pairs(variables)).map_err(|error| {
            let noted = failure.lock().ok().and_then(|mut noted| noted.take());
            noted.unwrap_or_else(|| failed(&error))
        })
    }
}

/// Where a template's function leaves the reason it stopped the template for.
struct Note(Arc<Mutex<Option<RenderError>>>);

impl Note {
    fn stop(&self, reason: RenderError) -> Error {
        if let Ok(mut noted) = self.0.lock() {
            noted.get_or_insert(reason);
        }
        Error::new(ErrorKind::InvalidOperation, "stopped by the template")
    }
}

/// Jinja's test: what Python's `iter` takes. (Among what a template is given, the same values have a length and items.)
#[expect(clippy::needless_pass_by_value, reason = "tests take their arguments so")]
fn is_iterable(value: Value) -> bool {
    !matches!(
        value.kind(),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain
    )
}

/// Jinja's test: Python's booleans are numbers.
#[expect(clippy::needless_pass_by_value, reason = "tests take their arguments so")]
fn is_number(value: Value) -> bool {
    let is_float = value.downcast_object_ref::<PythonFloat>().is_some();
    is_float || matches!(value.kind(), ValueKind::Bool | ValueKind::Number)
}

fn failed(error: &Error) -> RenderError {
    RenderError::Failed(error.to_string())
}

/// Turns `{% generation %}` blocks into blocks that always render, white-space control kept.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let body = tag[2..].trim_start_matches(['-', '+']);
        let word = body.trim_start();
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(word.len());
        let replacement = match &word[..end] {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => {
                out.push_str("{%");
                rest = &tag[2..];
                continue;
            }
        };
        out.push_str(&tag[..tag.len() - word.len()]);
        out.push_str(replacement);
        rest = &word[end..];
    }
    out.push_str(rest);
    out
}
