//! Why a request's token ids are not known.

/// The token ids of a request are not known here. The request may well be good: an instance decides that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The body is not JSON, or a field that matters has another type than the one it should have.
    #[error("the body is not a request of this kind: {message}")]
    Body {
        /// What is wrong, and where.
        message: String,
    },
    /// A message has a part that is no text (image, audio, video): its tokens come from the model's own processor.
    #[error("a message has a part of type `{kind}`; only text is tokenised here")]
    MultiModal {
        /// The part's type.
        kind: String,
    },
    /// The prompt is given as embeddings: there are no token ids.
    #[error("the prompt is given as embeddings")]
    PromptEmbeds,
    /// The request brings a chat template of its own.
    #[error("the request brings a chat template of its own")]
    TemplateInRequest,
    /// The model directory has no chat template.
    #[error("the model directory has no chat template; give the one that the servers run with")]
    NoTemplate,
    /// The model's chats are not rendered from a template but by code of vLLM.
    #[error("vLLM renders the chats of this model with code of its own ({model})")]
    OwnRenderer {
        /// The architecture or model type.
        model: String,
    },
    /// The chat template did not render: vLLM may answer 400 too, or the renderer here lacks something.
    #[error("the chat template failed: {message}")]
    Template {
        /// What the template, or the renderer, says.
        message: String,
    },
    /// The chat template asks for the time and the caller gave none.
    #[error("the chat template asks for the time, which was not given")]
    NoClock,
    /// vLLM answers 400 to such a request.
    #[error("vLLM refuses such a request: {why}")]
    Refused {
        /// For what.
        why: &'static str,
    },
    /// A field whose effect is not modelled here.
    #[error("the effect of `{field}` is not known here")]
    Unsupported {
        /// The field.
        field: &'static str,
    },
    /// The tokenizer has no token for a part of the text.
    #[error(transparent)]
    Encode(#[from] crate::EncodeError),
}

impl Unknown {
    /// A short name of the kind, for a metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Body { .. } => "body",
            Self::MultiModal { .. } => "multi_modal",
            Self::PromptEmbeds => "prompt_embeds",
            Self::TemplateInRequest => "template_in_request",
            Self::NoTemplate => "no_template",
            Self::OwnRenderer { .. } => "own_renderer",
            Self::Template { .. } => "template",
            Self::NoClock => "no_clock",
            Self::Refused { .. } => "refused",
            Self::Unsupported { .. } => "unsupported",
            Self::Encode(_) => "encode",
        }
    }
}
