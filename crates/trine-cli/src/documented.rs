//! Every command that a document shows parses.

#[path = "../../../xtask/src/tidy/commands.rs"]
mod commands;

use crate::args::{Bench, Cli, Command, ConfigArgs};
use crate::select;
use clap::Parser;
use clap::error::ErrorKind;
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
    &["bench", "schedules"],
    &["bench", "comm"],
];

/// Options of `trine launch` that `cargo xtask train --backend mpi` takes.
const OF_LAUNCH: &[&str] = &["-n", "--restarts", "--interface"];

/// Commands that a document shows because their configuration is refused.
const REFUSED: &[&str] = &["train --data FOLDER --tp 6"];

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
                `trine train --tp 6`";
    let found: Vec<Shown> = shown(text, &["trine"]).into_iter().chain(handed_on(text)).collect();
    assert_eq!(found.len(), 7);
    for command in found {
        assert!(problem(&command).is_some(), "{command:?}");
    }
}

/// README.md and its neighbours, everything below docs, and the README of every crate.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders = vec![root.join("docs")];
    let mut files = markdown(&root);
    files.extend(folders_in(&root.join("crates")).iter().flat_map(|folder| markdown(folder)));
    while let Some(folder) = folders.pop() {
        files.extend(markdown(&folder));
        folders.extend(folders_in(&folder));
    }
    assert!(files.len() > 50, "{files:?}");
    files
}

fn markdown(folder: &Path) -> Vec<PathBuf> {
    let is_markdown = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    entries(folder).filter(is_markdown).collect()
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    entries(folder).filter(|path| path.is_dir()).collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = folder.read_dir().expect("invariant: documents can be read");
    entries.map(|entry| entry.expect("invariant: documents can be read").path())
}

/// Commands of `cargo xtask` that become commands of this program.
fn handed_on(text: &str) -> impl Iterator<Item = Shown> {
    let of_trine =
        |command: &Shown| HANDED_ON.iter().any(|words| command.words.starts_with(&owned(words)));
    let commands = shown(text, &["cargo", "xtask"]).into_iter().filter(of_trine);
    commands.map(|command| Shown { words: launched(&command.words), ..command })
}

/// With `--backend mpi` xtask parts the words between `trine launch` and the training it starts.
fn launched(words: &[String]) -> Vec<String> {
    if !words.windows(2).any(|pair| pair == ["--backend", "mpi"]) {
        return words.to_vec();
    }
    let (mut launch, mut train) = (owned(&["launch"]), owned(&["--"]));
    let mut rest = words[1..].iter();
    while let Some(word) = rest.next() {
        let taken = if OF_LAUNCH.contains(&word.as_str()) { &mut launch } else { &mut train };
        taken.push(word.clone());
        if OF_LAUNCH.contains(&word.as_str()) {
            launch.extend(rest.next().cloned());
        }
    }
    launch.into_iter().chain(train).collect()
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Why a command does not parse, or what its configuration breaks; `None` if all is well, or if
/// nothing but an argument is missing in prose.
fn problem(command: &Shown) -> Option<String> {
    let typed = owned(&["trine"]).into_iter().chain(filled(&command.words));
    let own = match Cli::try_parse_from(typed) {
        Ok(cli) if !command.words.iter().any(|word| is_open(word)) => refused(&cli.command),
        Ok(_) => None,
        Err(error) => (!is_fine(&error, command)).then(|| error.to_string()),
    };
    let passed = command.words.iter().position(|word| word == "--");
    let train = passed.filter(|_| command.words[0] == "launch").map(|at| {
        let words = owned(&["train"]).into_iter().chain(command.words[at + 1..].iter().cloned());
        Shown { words: words.collect(), ..command.clone() }
    });
    own.or_else(|| train.and_then(|train| problem(&train)))
}

/// The words with a value in the place of each placeholder.
fn filled(words: &[String]) -> Vec<String> {
    let mut filled: Vec<String> = Vec::new();
    for word in words {
        let address = filled.last().is_some_and(|before| before == "--interface");
        let value = if address { "10.0.0.1" } else { "1" };
        filled.push(if is_placeholder(word) { value.to_owned() } else { word.clone() });
    }
    filled
}

/// What the configuration of a command that needs no file says against its keys and values.
fn refused(command: &Command) -> Option<String> {
    let check = |args: &ConfigArgs| {
        let own = args.schedule.as_ref().is_some_and(|schedule| schedule.starts_with("file:"));
        let typed = select::typed(args).ok().filter(|_| args.config.is_none() && !own)?;
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

fn is_fine(error: &clap::Error, command: &Shown) -> bool {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => command.in_prose,
        // A synopsis has options that exclude each other.
        ErrorKind::ArgumentConflict => command.is_synopsis,
        _ => false,
    }
}

/// `N`, `NAME`, `DPxPPxTP`: in capitals; or what a shell fills in.
fn is_placeholder(value: &str) -> bool {
    value.starts_with('$')
        || value.contains(char::is_uppercase)
            && !value.contains(|c: char| c.is_lowercase() && c != 'x')
}
