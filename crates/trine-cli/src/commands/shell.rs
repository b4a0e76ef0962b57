//! `trine completions` and `trine man`: the command line for shells and readers of manuals.

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::failure::Failure;
use crate::output;
use crate::written::{Kind, Output};
use anyhow::Context;
use clap::CommandFactory;

/// Prints a script that completes commands and options.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "trine", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

/// Prints the page of `trine`, or writes the pages of all commands.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let Some(folder) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page).context("cannot make the page")?;
        return output::print(&String::from_utf8_lossy(&page));
    };
    let cannot = || format!("--out {}: cannot write manual pages", folder.display());
    std::fs::create_dir_all(folder).with_context(cannot)?;
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("trine") && name.ends_with(".1") {
            Output { option: "--out", path: &path, kind: Kind::ManualPage }.check(&[])?;
        }
    }
    clap_mangen::generate_to(Cli::command(), folder).with_context(cannot)?;
    output::print(&format!("wrote the manual pages into {}\n", folder.display()))
}
