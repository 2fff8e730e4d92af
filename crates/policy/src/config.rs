//! Which policy, with which parameters.
//!
//! One [`PolicyConfig`] serves the three ways in: a TOML table (`kind = "jsq"`), the command line
//! (`NAME[:KEY=VALUE,…]`) and tests. Names, parameter names and defaults are written once, beside each
//! policy: its `Settings` name and explain them, its `Default` gives the values. Which policies there are is the
//! list in `lib.rs`, from which the macro [`rules`] makes the enum.

use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Serialize;
use toml::{Table, Value};

use crate::{LoadSignal, Policy, PolicyConfig};

/// Makes [`PolicyConfig`] and the modules of the arena, from one line for each rule.
///
/// A line of the arena is `module: Variant(Config)`: the module is the file `arena/module.rs`, of which all that is
/// `pub` is exported; the variant's name in kebab case is the policy's name, in TOML and on the command line;
/// the config has the parameters and the policy's [`Settings`]. Lines stand in the order in which rules are listed.
macro_rules! rules {
    (
        core { $($core:ident($core_config:ident),)* }
        arena { $($module:ident: $rule:ident($config:ident),)* }
    ) => {
        /// The rules that other projects publish, and the oracle, one file each.
        mod arena {
            $(pub(crate) mod $module;)*
        }
        $(pub use arena::$module::*;)*

        /// A policy and its parameters.
        #[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
        pub enum PolicyConfig {
            /// The next instance in the rotation: [`crate::RoundRobin`].
            RoundRobin {},
            $(
                #[doc = concat!("See [`crate::", stringify!($core), "`].")]
                $core($core_config),
            )*
            $(
                #[doc = concat!("See [`crate::", stringify!($rule), "`].")]
                $rule($config),
            )*
        }

        impl PolicyConfig {
            /// Number of the six policies that every comparison has.
            const CORE: usize = 1 + [$(stringify!($core)),*].len();

            /// The six policies of the original study with their default parameters, in the order in which they
            /// are listed.
            pub fn core() -> [Self; Self::CORE] {
                [Self::RoundRobin {}, $(Self::$core($core_config::default()),)*]
            }

            /// Every policy with its default parameters, in the order in which they are listed: the six of
            /// [`PolicyConfig::core`], then the rules that other projects publish, then the oracle.
            pub fn every() -> Vec<Self> {
                let mut every = Self::core().to_vec();
                every.extend([$(Self::$rule($config::default()),)*]);
                every
            }

            fn settings(&self) -> &dyn config::Settings {
                match self {
                    Self::RoundRobin {} => &round_robin::RoundRobinSettings,
                    $(Self::$core(config) => config,)*
                    $(Self::$rule(config) => config,)*
                }
            }
        }
    };
}
pub(crate) use rules;

impl PolicyConfig {
    /// Those of [`PolicyConfig::every`] that a gateway can run, in its order.
    pub fn every_live() -> Vec<Self> {
        let mut every = Self::every();
        every.retain(|config| !config.is_simulation_only());
        every
    }

    /// The names of [`PolicyConfig::every`], in its order.
    pub fn names() -> Vec<&'static str> {
        Self::every().iter().map(Self::name).collect()
    }

    /// The named policy with its default parameters.
    ///
    /// # Errors
    ///
    /// [`UnknownPolicy`], which lists the known names.
    pub fn from_name(name: &str) -> Result<Self, UnknownPolicy> {
        Self::every()
            .into_iter()
            .find(|config| config.name() == name)
            .ok_or_else(|| UnknownPolicy { name: name.to_owned() })
    }

    /// The policy's name on the command line.
    pub fn name(&self) -> &'static str {
        self.settings().name()
    }

    /// Checks the parameters' ranges.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] names the first parameter out of range.
    pub fn validate(&self) -> Result<(), InvalidPolicy> {
        self.settings().validate()
    }

    /// Whether the policy needs what only the simulator knows ([`crate::Needs::true_ttft`]).
    pub fn is_simulation_only(&self) -> bool {
        self.settings().is_simulation_only()
    }

    /// Checks that a gateway can run the policy, and the parameters' ranges.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] says what stands against it.
    pub fn validate_live(&self) -> Result<(), InvalidPolicy> {
        if self.is_simulation_only() {
            return Err(InvalidPolicy::SimulationOnly { policy: self.name() });
        }
        self.validate()
    }

    /// The policy, ready to choose. Policies that draw do so from `seed` alone.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] if a parameter is out of range.
    pub fn build(&self, seed: u64) -> Result<Box<dyn Policy>, InvalidPolicy> {
        self.validate()?;
        Ok(self.settings().policy(seed))
    }

    /// What there is to know of the policy before running it, for listings.
    ///
    /// Signals are those it reads with its present parameters.
    pub fn describe(&self) -> PolicyDescription {
        let settings = self.settings();
        let defaults = Self::from_name(settings.name()).map_or_else(|_| Table::new(), table);
        let parameters = settings.parameters().iter().map(|&(name, about)| Parameter {
            name,
            default: defaults.get(name).map_or_else(String::new, plain_text),
            about,
        });
        PolicyDescription {
            name: settings.name(),
            summary: settings.summary(),
            signals: settings.signals(),
            parameters: parameters.collect(),
        }
    }

    /// This policy with one parameter replaced.
    fn with(self, key: &str, value: &str) -> Result<Self, ParsePolicyError> {
        let policy = self.name();
        let Some(&(key, about)) =
            self.settings().parameters().iter().find(|(name, _)| *name == key)
        else {
            let key = key.to_owned();
            let known = self.parameter_names();
            return Err(ParsePolicyError::UnknownParameter { policy, key, known });
        };
        let mut table = table(self);
        table.insert(key.to_owned(), parse_value(value));
        table.try_into().map_err(|source| ParsePolicyError::Value {
            policy,
            key,
            value: value.to_owned(),
            about,
            source: Box::new(source),
        })
    }

    fn parameter_names(&self) -> Vec<&'static str> {
        self.settings().parameters().iter().map(|(name, _)| *name).collect()
    }
}

/// Parses `NAME[:KEY=VALUE,…]`, as in `load-cache:alpha=0.7,beta=0.3`; what is not given has its default.
impl FromStr for PolicyConfig {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, parameters) = match text.split_once(':') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (text, None),
        };
        let mut config = Self::from_name(name)?;
        let policy = config.name();
        let mut seen: Vec<&str> = Vec::new();
        for pair in parameters.iter().flat_map(|parameters| parameters.split(',')) {
            let Some((key, value)) = pair.split_once('=') else {
                let pair = pair.to_owned();
                let known = config.parameter_names();
                return Err(ParsePolicyError::NotAPair { policy, pair, known });
            };
            if seen.contains(&key) {
                return Err(ParsePolicyError::Repeated { policy, key: key.to_owned() });
            }
            seen.push(key);
            config = config.with(key, value)?;
        }
        config.validate()?;
        Ok(config)
    }
}

/// What `kvroute policies` shows of one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyDescription {
    /// Name on the command line.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// What it decides by, besides the ties: fields of [`crate::RequestView`], [`crate::Candidate`] and
    /// [`kvroute_types::LoadSnapshot`].
    pub signals: Vec<&'static str>,
    /// What can be set.
    pub parameters: Vec<Parameter>,
}

/// One parameter of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parameter {
    /// Name, in TOML and on the command line.
    pub name: &'static str,
    /// Value if it is not set, as it would be written on the command line.
    pub default: String,
    /// Meaning, and values or range.
    pub about: &'static str,
}

/// No policy has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no policy is named `{name}`; known: {}", PolicyConfig::names().join(", "))]
pub struct UnknownPolicy {
    /// The name asked for.
    pub name: String,
}

/// A parameter is out of range, or the policy cannot be used here.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidPolicy {
    /// The policy reads the engines' true state, and here nobody knows it.
    #[error(
        "{policy} decides by the engines' true state, which only a simulation knows; use it in `kvroute simulate` or in a \
         simulated experiment, or choose another policy here"
    )]
    SimulationOnly {
        /// Name of the policy.
        policy: &'static str,
    },
    /// A weight that is negative, infinite or not a number.
    #[error("{policy}: `{parameter}` is {value}; give a finite number, at least 0")]
    Weight {
        /// Name of the policy.
        policy: &'static str,
        /// Name of the parameter.
        parameter: &'static str,
        /// Its value.
        value: f64,
    },
    /// A number outside its range.
    #[error("{policy}: `{parameter}` is {value}; give a number from {least} to {most}")]
    Range {
        /// Name of the policy.
        policy: &'static str,
        /// Name of the parameter.
        parameter: &'static str,
        /// Its value.
        value: f64,
        /// The least allowed.
        least: f64,
        /// The greatest allowed.
        most: f64,
    },
}

impl InvalidPolicy {
    /// [`InvalidPolicy::Weight`] for the first parameter that is no weight.
    pub(crate) fn unless_weights(
        policy: &'static str,
        parameters: &[(&'static str, f64)],
    ) -> Result<(), Self> {
        let is_weight = |value: f64| value.is_finite() && value >= 0.0;
        match parameters.iter().find(|(_, value)| !is_weight(*value)) {
            Some(&(parameter, value)) => Err(Self::Weight { policy, parameter, value }),
            None => Ok(()),
        }
    }

    /// [`InvalidPolicy::Range`] if the value is outside the range.
    pub(crate) fn unless_within(
        policy: &'static str,
        parameter: &'static str,
        value: f64,
        range: RangeInclusive<f64>,
    ) -> Result<(), Self> {
        if range.contains(&value) {
            return Ok(());
        }
        let (least, most) = range.into_inner();
        Err(Self::Range { policy, parameter, value, least, most })
    }
}

/// Why `NAME[:KEY=VALUE,…]` is not a policy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ParsePolicyError {
    /// The name is not known.
    #[error(transparent)]
    Unknown(#[from] UnknownPolicy),
    /// A part behind the colon has no `=`.
    #[error("{policy}: `{pair}` is not KEY=VALUE; {}", known_parameters(known))]
    NotAPair {
        /// Name of the policy.
        policy: &'static str,
        /// The part.
        pair: String,
        /// The policy's parameters.
        known: Vec<&'static str>,
    },
    /// The policy has no such parameter.
    #[error("{policy} has no parameter `{key}`; {}", known_parameters(known))]
    UnknownParameter {
        /// Name of the policy.
        policy: &'static str,
        /// Name of the parameter.
        key: String,
        /// The policy's parameters.
        known: Vec<&'static str>,
    },
    /// One parameter is given twice.
    #[error("{policy}: `{key}` is given twice; give it once")]
    Repeated {
        /// Name of the policy.
        policy: &'static str,
        /// Name of the parameter.
        key: String,
    },
    /// The value is of the wrong kind.
    #[error("{policy}: `{value}` does not fit `{key}` ({about})")]
    Value {
        /// Name of the policy.
        policy: &'static str,
        /// Name of the parameter.
        key: &'static str,
        /// The value given.
        value: String,
        /// What the parameter means.
        about: &'static str,
        /// What the reader of the value says.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The value is out of range.
    #[error(transparent)]
    Invalid(#[from] InvalidPolicy),
}

/// What each policy's config says of its policy, in its own file.
pub(crate) trait Settings {
    /// Name on the command line; also the serde tag.
    fn name(&self) -> &'static str;

    /// What it does, in one line.
    fn summary(&self) -> &'static str;

    /// Name and meaning of each parameter: the config struct's fields.
    fn parameters(&self) -> &'static [(&'static str, &'static str)];

    /// See [`PolicyDescription::signals`].
    fn signals(&self) -> Vec<&'static str>;

    /// Whether it sets [`crate::Needs::true_ttft`].
    fn is_simulation_only(&self) -> bool {
        false
    }

    /// Checks the parameters' ranges.
    fn validate(&self) -> Result<(), InvalidPolicy> {
        Ok(())
    }

    /// The policy; the parameters were validated.
    fn policy(&self, seed: u64) -> Box<dyn Policy>;
}

impl LoadSignal {
    /// What the parameter means, for [`Parameter::about`].
    pub(crate) const ABOUT: &str = "load compared: total (waiting + running + own requests not yet seen), waiting or in-flight";

    /// The fields of the candidate and its reading that it sums.
    pub(crate) const fn signals(self) -> &'static [&'static str] {
        match self {
            Self::Total => &["waiting", "running", "unseen_in_flight"],
            Self::Waiting => &["waiting"],
            Self::InFlight => &["in_flight"],
        }
    }

    /// Whether it reads the instance's gauges ([`crate::Needs::load`]).
    pub(crate) const fn needs_reading(self) -> bool {
        match self {
            Self::Total | Self::Waiting => true,
            Self::InFlight => false,
        }
    }
}

/// The config as a table.
fn table(config: PolicyConfig) -> Table {
    Table::try_from(config).expect("every config is a flat struct of numbers and words")
}

/// A value from the command line: number, truth value, or else a word.
fn parse_value(text: &str) -> Value {
    text.parse()
        .map(Value::Integer)
        .or_else(|_| text.parse().map(Value::Float))
        .or_else(|_| text.parse().map(Value::Boolean))
        .unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn known_parameters(known: &[&str]) -> String {
    match known {
        [] => "it takes no parameters".to_owned(),
        known => format!("known: {}", known.join(", ")),
    }
}

/// A value as the command line takes it: words without quotes.
fn plain_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests;
