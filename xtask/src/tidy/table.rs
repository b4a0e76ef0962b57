//! crates.toml: the layering, and the exceptions from other rules.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

/// The file, relative to the root.
pub(super) const PATH: &str = "crates.toml";

/// All of crates.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    /// From the bottom layer up.
    #[serde(rename = "crate")]
    pub(super) crates: Vec<Row>,
    #[serde(default, rename = "exception")]
    pub(super) exceptions: Vec<Exception>,
}

/// One crate.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) purpose: String,
    pub(super) kind: Kind,
    #[serde(default)]
    pub(super) pure: bool,
    pub(super) uses: Vec<String>,
}

/// What a crate is to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Anyone above may use it.
    Library,
    /// Nobody uses it; it may read the environment.
    Binary,
    /// A dev-dependency of the others, never a normal one.
    Dev,
    /// Nobody uses it, and it is not part of the product.
    Tool,
}

/// A file that a rule lets pass.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exception {
    pub(super) rule: String,
    pub(super) path: String,
    pub(super) reason: String,
}

impl Table {
    /// Reads crates.toml in `root`.
    pub(super) fn load(root: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(root.join(PATH))
            .with_context(|| format!("cannot read {PATH}"))?;
        toml::from_str(&text).with_context(|| format!("{PATH} is not what tidy expects"))
    }

    /// The row of a crate.
    pub(super) fn row(&self, name: &str) -> Option<&Row> {
        self.crates.iter().find(|row| row.name == name)
    }

    /// The kind of the crate that holds a file, by its folder; files outside of crates are tools.
    pub(super) fn kind_of(&self, path: &str) -> Kind {
        let folder = path.strip_prefix("crates/").and_then(|rest| rest.split('/').next());
        folder.and_then(|name| self.row(name)).map_or(Kind::Tool, |row| row.kind)
    }
}
