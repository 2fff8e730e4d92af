//! The profiles that ship with the crate.

use crate::profile::LatencyProfile;

/// Name and text of each, sorted by name. A profile's `name` equals the name here (tested).
const BUILTIN: [(&str, &str); 5] = [
    ("a100-llama3.1-8b", include_str!("../profiles/a100-llama3.1-8b.toml")),
    ("cpu-tiny", include_str!("../profiles/cpu-tiny.toml")),
    ("h100-llama3.1-8b", include_str!("../profiles/h100-llama3.1-8b.toml")),
    ("rtx4090-llama3.1-8b", include_str!("../profiles/rtx4090-llama3.1-8b.toml")),
    ("rtx5080-half-qwen2.5-0.5b", include_str!("../profiles/rtx5080-half-qwen2.5-0.5b.toml")),
];

/// No built-in profile has the name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no built-in profile `{name}`; take one of {}, or the path of a TOML file", .known.join(", "))]
pub struct UnknownProfile {
    /// The name asked for.
    pub name: String,
    /// The names there are.
    pub known: Vec<&'static str>,
}

impl LatencyProfile {
    /// Names of the built-in profiles, sorted.
    pub fn names() -> impl ExactSizeIterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    /// The built-in profile of that name.
    ///
    /// # Errors
    /// [`UnknownProfile`], which lists the names there are.
    ///
    /// # Panics
    /// If a built-in profile is broken, which the crate's tests rule out.
    pub fn builtin(name: &str) -> Result<Self, UnknownProfile> {
        let Some((_, text)) = BUILTIN.iter().find(|(known, _)| *known == name) else {
            return Err(UnknownProfile { name: name.to_owned(), known: Self::names().collect() });
        };
        Ok(Self::from_toml(text).unwrap_or_else(|error| panic!("built-in profile {name}: {error}")))
    }
}
