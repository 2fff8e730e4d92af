//! Which shape of message content a chat template expects: text, or a list of parts.
//!
//! vLLM reads it off the template's syntax tree (`vllm/renderers/hf.py`, `_detect_content_format`): a template takes
//! parts ("openai") if it loops over the content of a message, else text ("string"). This follows it node by node,
//! including where it gives up: a loop or an assignment it takes for one over messages, but whose target is not a
//! plain name, makes it fall back to text.

use std::collections::{BTreeSet, VecDeque};

use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value as Tree;

/// The shape of content that a template is given; named as in vLLM's `--chat-template-content-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentFormat {
    /// Text; the texts of several parts are joined by line feeds.
    String,
    /// A list of parts, each a map with its `type`.
    OpenAi,
}

/// The format of a template that compiles.
pub(crate) fn detect(template: &str, syntax: &SyntaxConfig) -> ContentFormat {
    let tree = parse(template, "chat template", syntax.clone())
        .ok()
        .and_then(|statement| serde_json::to_value(&statement).ok());
    match tree.as_ref().and_then(loops_over_content) {
        Some(true) => ContentFormat::OpenAi,
        Some(false) | None => ContentFormat::String,
    }
}

/// A node of the syntax tree: its kind and its fields.
#[derive(Clone, Copy)]
struct Node<'a> {
    kind: &'a str,
    fields: &'a Tree,
}

impl<'a> Node<'a> {
    fn of(tree: &'a Tree) -> Option<Self> {
        let kind = tree.get("stmt").or_else(|| tree.get("expr"))?.as_str()?;
        Some(Self { kind, fields: tree.get("inner")?.get(0)? })
    }

    fn child(self, field: &str) -> Option<Self> {
        Self::of(self.fields.get(field)?)
    }

    fn text(self, field: &str) -> Option<&'a str> {
        self.fields.get(field)?.as_str()
    }

    /// The name, if this is a plain name.
    fn name(self) -> Option<&'a str> {
        if self.kind == "Var" { self.text("id") } else { None }
    }

    /// `_is_var_or_elems_access`: the variable, or its attribute `key`; filtered, tested or sliced.
    fn accesses(self, variable: &str, key: Option<&str>) -> bool {
        if matches!(self.kind, "Filter" | "Test" | "Slice") {
            return self.child("expr").is_some_and(|inner| inner.accesses(variable, key));
        }
        let Some(key) = key else { return self.name() == Some(variable) };
        let of_variable = self.child("expr").and_then(Self::name) == Some(variable);
        let accessed = match self.kind {
            "GetAttr" => self.text("name"),
            "GetItem" => self
                .child("subscript_expr")
                .filter(|subscript| subscript.kind == "Const")
                .and_then(|subscript| subscript.text("value")),
            _ => None,
        };
        of_variable && accessed == Some(key)
    }
}

/// All nodes of these kinds, outer ones first.
fn nodes<'a>(tree: &'a Tree, kinds: &[&str]) -> Vec<Node<'a>> {
    fn walk<'a>(tree: &'a Tree, kinds: &[&str], found: &mut Vec<Node<'a>>) {
        if let Some(node) = Node::of(tree)
            && kinds.contains(&node.kind)
        {
            found.push(node);
        }
        match tree {
            Tree::Array(items) => items.iter().for_each(|item| walk(item, kinds, found)),
            Tree::Object(fields) => fields.values().for_each(|field| walk(field, kinds, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(tree, kinds, &mut found);
    found
}

/// Whether the template loops over the content of a message; `None` where vLLM's detection gives up.
fn loops_over_content(root: &Tree) -> Option<bool> {
    let loops = nodes(root, &["ForLoop"]);
    let lists = names_of_messages(root)?;
    let mut messages = Vec::new();
    for node in &loops {
        let (iter, target) = (node.child("iter")?, node.child("target")?);
        if lists.iter().any(|list| iter.accesses(list, None)) {
            messages.push(target.name()?);
        }
    }
    let is_content =
        |node: Node<'_>| messages.iter().any(|message| node.accesses(message, Some("content")));
    let macros = nodes(root, &["Macro"]);
    let mut looped = loops.iter().filter(|node| {
        let Some(iter) = node.child("iter") else { return false };
        let Some(name) = iter.name() else { return is_content(iter) };
        let around: Vec<&Node<'_>> =
            macros.iter().filter(|outer| holds(outer.fields, node.fields)).collect();
        if around.is_empty() {
            return name == "content";
        }
        around.iter().any(|outer| content_parameters(root, **outer, &is_content).contains(name))
    });
    match looped.next() {
        Some(node) => node.child("target")?.name().map(|_| true),
        None => Some(false),
    }
}

/// `_iter_nodes_assign_var_or_elems`: the names that stand for the list of messages.
fn names_of_messages(root: &Tree) -> Option<Vec<&str>> {
    let assignments = nodes(root, &["Set"]);
    let mut names = vec!["messages"];
    let mut related = VecDeque::from(["messages"]);
    let mut seen = BTreeSet::new();
    while let Some(variable) = related.pop_front() {
        if !seen.insert(variable) {
            continue;
        }
        for node in &assignments {
            if node.child("expr")?.accesses(variable, None) {
                let name = node.child("target")?.name()?;
                names.push(name);
                related.push_back(name);
            }
        }
    }
    Some(names)
}

/// Whether `inner` is a part of `outer`, by identity.
fn holds(outer: &Tree, inner: &Tree) -> bool {
    if std::ptr::eq(outer, inner) {
        return true;
    }
    match outer {
        Tree::Array(items) => items.iter().any(|item| holds(item, inner)),
        Tree::Object(fields) => fields.values().any(|field| holds(field, inner)),
        _ => false,
    }
}

/// The parameters of a macro that some call gives a message's content.
fn content_parameters<'a>(
    root: &'a Tree,
    of: Node<'a>,
    is_content: &dyn Fn(Node<'_>) -> bool,
) -> BTreeSet<&'a str> {
    let parameters: Vec<&str> = of
        .fields
        .get("args")
        .and_then(Tree::as_array)
        .into_iter()
        .flatten()
        .filter_map(|parameter| Node::of(parameter)?.name())
        .collect();
    let calls = nodes(root, &["Call"]).into_iter().map(|node| node.fields);
    // The call of a call block is not tagged as an expression.
    let blocks = nodes(root, &["CallBlock"]).into_iter();
    let of_blocks = blocks.filter_map(|block| block.fields.get("call")?.get("inner")?.get(0));
    let mut found = BTreeSet::new();
    for call in calls.chain(of_blocks) {
        let callee = call.get("expr").and_then(Node::of).and_then(Node::name);
        if callee.is_none() || callee != of.text("name") {
            continue;
        }
        let arguments = call.get("args").and_then(Tree::as_array);
        for (at, argument) in arguments.into_iter().flatten().enumerate() {
            let (name, value) = match (argument.get("Pos"), argument.get("Kwarg")) {
                (Some(value), _) => (parameters.get(at).copied(), Some(value)),
                (_, Some(named)) => {
                    let name = named.get(0).and_then(Tree::as_str);
                    (name.filter(|name| parameters.contains(name)), named.get(1))
                }
                _ => (None, None),
            };
            if let (Some(name), Some(value)) = (name, value.and_then(Node::of))
                && is_content(value)
            {
                found.insert(name);
            }
        }
    }
    found
}
