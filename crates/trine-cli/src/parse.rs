//! From words to a command, with tips for words that trine does not have.

use crate::args::Cli;
use crate::foreign;
use crate::output;
use crate::terminal::quoted;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::process::ExitCode;

/// The command of `words`, of which the first is the program.
pub(crate) fn parse(words: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(words).map_err(|error| explained(error, words))
}

/// Shows what clap has to say, a help text too, and gives the exit code.
pub(crate) fn report(error: &clap::Error) -> ExitCode {
    let code = u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, Into::into);
    // It repeats arguments.
    if let Cow::Owned(shown) = output::printable(&error.render().to_string()) {
        output::complain(shown.trim_end());
        return code;
    }
    match error.print() {
        Err(cause) if !error.use_stderr() && cause.kind() != io::ErrorKind::BrokenPipe => {
            output::complain(&format!("error: cannot write to the standard output: {cause}"));
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => code,
    }
}

fn explained(mut error: clap::Error, words: &[OsString]) -> clap::Error {
    let typed = |error: &clap::Error, kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    if let Some(ContextValue::String(option)) = error.get(ContextKind::SuggestedArg)
        && is_hidden(option)
    {
        error.remove(ContextKind::SuggestedArg);
    }
    let tip = match error.kind() {
        ErrorKind::UnknownArgument => typed(&error, ContextKind::InvalidArg)
            .and_then(|typed| value_tip(&typed, words).or_else(|| argument_tip(&typed, words))),
        ErrorKind::InvalidSubcommand => {
            let typed = typed(&error, ContextKind::InvalidSubcommand);
            typed.and_then(|typed| foreign::command(&typed)).map(str::to_owned)
        }
        ErrorKind::InvalidUtf8 => return not_utf8(words).unwrap_or(error),
        _ => None,
    };
    show_controls(&mut error);
    if let Some(tip) = tip {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// What was typed may hold control characters, which clap drops or passes on: they are shown.
fn show_controls(error: &mut clap::Error) {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand, ContextKind::InvalidValue]
    {
        if let Some(ContextValue::String(text)) = error.get(kind)
            && let Cow::Owned(shown) = output::printable(text)
        {
            error.insert(kind, ContextValue::String(shown));
        }
    }
}

/// Whether an option of some command is there, but not for people to type.
fn is_hidden(option: &str) -> bool {
    let long = option.trim_start_matches('-');
    let has = |command: &clap::Command| {
        command.get_arguments().any(|arg| arg.is_hide_set() && arg.get_long() == Some(long))
    };
    Cli::command().get_subcommands().any(has)
}

/// How to hand a value that looks like an option to the option before it.
fn value_tip(typed: &str, words: &[OsString]) -> Option<String> {
    let is_typed = |word: &OsString| word.to_string_lossy().starts_with(typed);
    let at = words.iter().position(is_typed)?;
    let before = words[..at].last()?.to_str().filter(|word| word.starts_with("--"))?;
    let value = words[at].to_str()?;
    let mut command = &Cli::command();
    for word in words.iter().skip(1) {
        command = word.to_str().and_then(|word| command.find_subcommand(word)).unwrap_or(command);
    }
    let mut arguments = command.get_arguments();
    let takes_value = arguments
        .any(|arg| arg.get_long() == Some(&before[2..]) && arg.get_action().takes_values());
    takes_value.then(|| format!("as the value of {before}: {before}={}", quoted(value)))
}

/// What to type instead of an argument that the command does not have.
fn argument_tip(typed: &str, words: &[OsString]) -> Option<String> {
    let command = words.iter().skip(1).find(|word| !word.to_string_lossy().starts_with('-'))?;
    let command = command.to_str()?;
    if !typed.starts_with('-') {
        return (command == "generate").then(|| format!("--run {}", quoted(typed)));
    }
    let name = typed.trim_start_matches('-');
    let train = Cli::command();
    let of_train = |name: &str| {
        let train = train.find_subcommand("train");
        train.is_some_and(|train| train.get_arguments().any(|arg| arg.get_long() == Some(name)))
    };
    if command == "launch" && of_train(name) {
        return Some(format!(
            "arguments of `trine train` come after `--`: trine launch -- {typed} …"
        ));
    }
    let tip = foreign::option(command, typed).map(str::to_owned);
    let takes_keys = matches!(command, "train" | "launch" | "bench");
    tip.or_else(|| key_tip(name).filter(|_| takes_keys))
}

/// The key of the configuration that has this name, as a whole or behind its section.
fn key_tip(name: &str) -> Option<String> {
    let path = name.replace('-', "_");
    let is_leaf = |key: &str| key.rsplit('.').next() == Some(path.as_str());
    let mut found =
        trine_trainer::config::keys().filter(|key| key.path == path || is_leaf(key.path));
    let key = found.next()?;
    found.next().is_none().then(|| format!("--set {}=VALUE", key.path))
}

/// Which argument is not UTF-8.
fn not_utf8(words: &[OsString]) -> Option<clap::Error> {
    let at = words.iter().position(|word| word.to_str().is_none())?;
    let before = words[..at].last().and_then(|word| word.to_str());
    let option = before.filter(|word| word.starts_with("--")).unwrap_or("argument");
    let why = if OF_PATHS.contains(&option) { NOT_UTF8 } else { "not UTF-8 text" };
    Some(usage(format!("{option} {}: {why}", shown(&words[at]))))
}

/// Options whose values are paths that a configuration holds.
const OF_PATHS: &[&str] = &["--data", "--out", "--corpus-manifest", "--cache"];

/// What is wrong with a path that a configuration cannot hold.
pub(crate) const NOT_UTF8: &str = "not UTF-8, which a configuration is; rename it";

/// Bytes that are no text, escaped.
pub(crate) fn shown(word: &OsStr) -> String {
    let bytes = word.as_encoded_bytes();
    let text = bytes.utf8_chunks().map(|chunk| {
        let invalid: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")).collect();
        chunk.valid().escape_debug().to_string() + &invalid
    });
    format!("\"{}\"", text.collect::<String>())
}

fn usage(message: String) -> clap::Error {
    Cli::command().error(ErrorKind::InvalidUtf8, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(words: &[&str]) -> String {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&words).unwrap_err().render().to_string()
    }

    #[test]
    fn words_of_other_programs_get_the_tip_that_fits() {
        let cases: [(&[&str], &str); 15] = [
            (&["train", "--lr", "3e-4"], "tip: --set optimizer.lr=RATE"),
            (&["train", "--learning_rate=3e-4"], "tip: --set optimizer.lr=RATE"),
            (&["train", "--batch-size", "8"], "tip: --set batch.global=N"),
            (&["train", "--epochs=3"], "tip: --steps N"),
            (&["train", "--gpus", "8"], "tip: --dp N --pp N --tp N"),
            (&["train", "--lora"], "tip: trine trains all weights"),
            (&["train", "-o", "x"], "tip: --out DIR"),
            (&["bench", "step", "--fp16"], "tip: --precision bf16"),
            (&["train", "--weight-decay", "0"], "tip: --set optimizer.weight_decay=VALUE"),
            (&["train", "--train.clip_norm", "0"], "tip: --set train.clip_norm=VALUE"),
            (&["generate", "runs/a"], "tip: --run runs/a"),
            (&["train", "--batch", "4"], "tip: --set batch.global=N"),
            (&["train", "--out", "-x"], "tip: as the value of --out: --out=-x"),
            (&["plan", "scale", "--svg", "-x"], "tip: as the value of --svg: --svg=-x"),
            (&["launch", "--tp", "2"], "tip: arguments of `trine train` come after `--`"),
        ];
        for (words, tip) in cases {
            let text = message(&[&["trine"], words].concat());
            assert!(text.contains(tip), "{words:?}: {text}");
            assert_eq!(text.matches("tip:").count(), 1, "{words:?}: {text}");
        }
        assert!(message(&["trine", "fit"]).contains("tip: trine train"));
        // What is nearly an option of ours is clap's business.
        assert!(message(&["trine", "train", "--stepz", "3"]).contains("'--steps'"));
    }

    #[cfg(unix)]
    #[test]
    fn an_argument_that_is_no_text_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let words = ["trine", "train", "--out"].map(OsString::from).into_iter();
        let words: Vec<OsString> = words.chain([OsString::from_vec(b"caf\xe9\n".into())]).collect();
        let text = parse(&words).unwrap_err().render().to_string();
        assert!(text.contains("--out \"caf\\xe9\\n\": not UTF-8, which"), "{text}");
        let words = ["trine", "generate", "--prompt"].map(OsString::from).into_iter();
        let words: Vec<OsString> = words.chain([OsString::from_vec(b"\xff".into())]).collect();
        let text = parse(&words).unwrap_err().render().to_string();
        assert!(text.contains("--prompt \"\\xff\": not UTF-8 text"), "{text}");
    }
}
