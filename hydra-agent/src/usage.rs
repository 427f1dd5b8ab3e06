//! Mistakes on a command line in the form of all other errors: what is wrong, a blank line, what mends it.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use crate::render;

/// Says it, and gives the exit code.
pub fn answer(error: &Error) -> ExitCode {
    match mistake(error) {
        Some((message, hint)) => render::error(&message, Some(&hint)),
        None => drop(error.print()),
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Message and hint; none where the error is an answer, like help, that is printed as it is.
fn mistake(error: &Error) -> Option<(String, String)> {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return None;
    }
    let text = error.render().to_string();
    // What follows the first empty line is advice and usage.
    let said = text.split("\n\n").next().unwrap_or_default();
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let lines: Vec<&str> =
        said.lines().map(str::trim).filter(|l| !l.starts_with("[possible values")).collect();
    Some((quoted(&lines.join(" ")), hint(error, &text)))
}

fn hint(error: &Error, text: &str) -> String {
    let one = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        Some(ContextValue::Strings(words)) => words.first().map(String::as_str),
        _ => None,
    };
    let unknown = error.kind() == ErrorKind::UnknownArgument;
    match one(ContextKind::InvalidArg) {
        Some("--json") if unknown => return "`-o json`".into(),
        Some("--socket") if unknown => {
            return "`--socket` goes before the command: `hydractl --socket PATH …`".into();
        }
        _ => {}
    }
    if let Some(ContextValue::Strings(words)) = error.get(ContextKind::ValidValue)
        && !words.is_empty()
    {
        return format!("one of `{}`", words.join("`, `"));
    }
    let suggested =
        [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg, ContextKind::SuggestedValue];
    if let Some(word) = suggested.into_iter().find_map(one) {
        return format!("did you mean `{word}`?");
    }
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or_default();
    let words = usage.split_whitespace();
    let command: Vec<&str> = words.take_while(|w| !w.starts_with(['[', '<', '-'])).collect();
    match command.as_slice() {
        [] => "`--help` says what can be given".into(),
        words => format!("`{} --help`", words.join(" ")),
    }
}

/// Names in back-ticks, as everywhere.
fn quoted(text: &str) -> String {
    text.replace('\'', "`")
}
