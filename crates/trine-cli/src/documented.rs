//! Every command that a document shows parses.

#[path = "../../../xtask/src/tidy/commands.rs"]
mod commands;

use crate::args::{Bench, Cli, Command, ConfigArgs};
use crate::select;
use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use commands::{Shown, shown};
use std::path::{Path, PathBuf};
use trine_trainer::config::Config;

/// What `cargo xtask` hands to this program as it is.
const HANDED_ON: &[&[&str]] = &[
    &["train"],
    &["bench", "layouts"],
    &["bench", "step"],
    &["bench", "kernels"],
    &["bench", "plan"],
    &["bench", "comm"],
];

/// Commands that a document shows because their configuration is refused.
const REFUSED: &[&str] = &["train --data FOLDER --tp 3"];

#[test]
fn every_command_in_a_document_parses() {
    let (mut parsed, mut wrong) = (0, vec![]);
    for file in documents() {
        let text = std::fs::read_to_string(&file).expect("invariant: documents can be read");
        for command in shown(&text, &["trine"]).into_iter().chain(handed_on(&text)) {
            parsed += 1;
            if REFUSED.contains(&command.words.join(" ").as_str()) {
                assert!(problem(&command).is_some(), "{command:?} is not refused");
                continue;
            }
            wrong.extend(problem(&command).map(|problem| {
                format!(
                    "{}:{}: trine {}: {problem}",
                    file.display(),
                    command.line,
                    command.words.join(" ")
                )
            }));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(parsed >= 120, "only {parsed} commands found");
}

#[test]
fn a_command_that_does_not_parse_is_noticed() {
    let text = "`trine train --stepz 3` `trine plann` `trine schedule show 1f1b --stages four` \
                `trine launch -- --tq 2` `cargo xtask bench step --profil` `trine train --set train.lr=1` \
                `trine train --tp 3`";
    let found: Vec<Shown> = shown(text, &["trine"]).into_iter().chain(handed_on(text)).collect();
    assert_eq!(found.len(), 7);
    for command in found {
        assert!(problem(&command).is_some(), "{command:?}");
    }
}

/// README.md and its neighbours, and everything below docs.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders = vec![root.join("docs")];
    let mut files = markdown(&root);
    while let Some(folder) = folders.pop() {
        files.extend(markdown(&folder));
        let below = folder
            .read_dir()
            .expect("invariant: documents can be read")
            .map(|entry| entry.expect("invariant: documents can be read").path());
        folders.extend(below.filter(|path| path.is_dir()));
    }
    assert!(files.len() > 30, "{files:?}");
    files
}

fn markdown(folder: &Path) -> Vec<PathBuf> {
    let paths = folder
        .read_dir()
        .expect("invariant: documents can be read")
        .map(|entry| entry.expect("invariant: documents can be read").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// Commands of `cargo xtask` that become commands of this program.
fn handed_on(text: &str) -> impl Iterator<Item = Shown> {
    let commands = shown(text, &["cargo", "xtask"]).into_iter();
    commands
        .filter(|command| HANDED_ON.iter().any(|words| command.words.starts_with(&owned(words))))
        .map(|mut command| {
            // With MPI xtask takes the number of processes for itself.
            if let Some(at) = command.words.iter().position(|word| word == "-n") {
                command.words.drain(at..(at + 2).min(command.words.len()));
            }
            command
        })
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Why a command does not parse; `None` if it does, or if all that is wrong is a placeholder or, in
/// prose, a missing argument.
fn problem(command: &Shown) -> Option<String> {
    let typed = std::iter::once("trine").chain(command.words.iter().map(String::as_str));
    let own = match Cli::try_parse_from(typed) {
        Ok(cli) if !command.words.iter().any(|word| is_open(word)) => refused(&cli.command),
        Ok(_) => None,
        Err(error) => (!is_fine(&error, command.in_prose)).then(|| error.to_string()),
    };
    let passed = command.words.iter().position(|word| word == "--");
    let train = passed.filter(|_| command.words[0] == "launch").map(|at| {
        let words = owned(&["train"]).into_iter().chain(command.words[at + 1..].iter().cloned());
        Shown { words: words.collect(), ..command.clone() }
    });
    own.or_else(|| train.and_then(|train| problem(&train)))
}

/// What the configuration of a command that needs no file says against its keys and values.
fn refused(command: &Command) -> Option<String> {
    let check = |args: &ConfigArgs| {
        let typed = select::typed(args).ok().filter(|_| args.config.is_none())?;
        Config::load(&typed).err().map(|error| error.to_string())
    };
    if let Command::Train(args) = command {
        return check(&args.config).filter(|_| args.resume.is_none());
    }
    if let Command::Bench(Bench::Step(args)) = command {
        return check(&args.config);
    }
    if let Command::Bench(Bench::Layouts(args)) = command {
        return check(&args.config);
    }
    None
}

/// True if a word leaves a value open that a configuration would look at. Paths are not looked at.
fn is_open(word: &str) -> bool {
    let path = matches!(word, "FOLDER" | "FILE" | "PATH" | "DIR");
    word == "…" || is_placeholder(word) && !path
}

fn is_fine(error: &clap::Error, in_prose: bool) -> bool {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => in_prose,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = error.get(ContextKind::InvalidValue);
            matches!(value, Some(ContextValue::String(value)) if is_placeholder(value))
        }
        _ => false,
    }
}

/// `N`, `NAME`, `DPxPPxTP`: in capitals; or what a shell fills in.
fn is_placeholder(value: &str) -> bool {
    value.starts_with('$')
        || value.contains(char::is_uppercase)
            && !value.contains(|c: char| c.is_lowercase() && c != 'x')
}
