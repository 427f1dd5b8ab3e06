//! The only place of the library that writes to a terminal: tables, JSON and YAML to stdout, words to stderr. Whatever comes from
//! outside (names, labels, what the system says) leaves here without anything that a terminal would obey.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; stable.
    Json,
    /// The same as JSON.
    Yaml,
}

/// Why data could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// Stdout did not take it.
    #[error("cannot write to the standard output: {0}")]
    Write(#[from] io::Error),
    /// It has no JSON form.
    #[error("cannot turn the answer into JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It has no YAML form.
    #[error("cannot turn the answer into YAML: {0}")]
    Yaml(String),
}

/// A list: a table of some columns, or all fields of all rows.
pub fn list<T: Serialize>(rows: &[T], columns: &[&str], format: Format) -> Result<(), RenderError> {
    match format {
        Format::Table => data(&table(rows, columns)?),
        Format::Json | Format::Yaml => object(&rows, format),
    }
}

/// One value as JSON or YAML. (As a table it would have no columns: the caller prints it with [`data`].)
pub fn object<T: Serialize>(value: &T, format: Format) -> Result<(), RenderError> {
    data(&serialized(value, format)?)
}

/// One value on one line of JSON.
pub fn line<T: Serialize>(value: &T) -> Result<(), RenderError> {
    let mut text = ascii_where_it_matters(&serde_json::to_string(value)?);
    text.push('\n');
    data(&text)
}

/// Text to stdout as it is; a reader that went away is not an error. Anything from outside in it must have been through
/// [`escape`].
pub fn data(text: &str) -> Result<(), RenderError> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Words for people, to stderr. Nobody is told when stderr is closed: there is nobody to tell.
pub fn words(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// `error: what happened`, and what mends it.
pub fn error(message: &str, hint: Option<&str>) {
    words(&error_text(message, hint));
}

/// What [`error`] prints.
pub fn error_text(message: &str, hint: Option<&str>) -> String {
    let (bad, bold) = (colour(AnsiColor::Red).bold(), Style::new().bold());
    let mut text = format!("{bad}error{bad:#}: {}", escape(message));
    if let Some(hint) = hint.filter(|h| !h.is_empty()) {
        let _ = write!(text, "\n\n{bold}hint{bold:#}: {}", escape(hint));
    }
    text
}

/// A verdict in its colour.
pub fn verdict(word: &str) -> String {
    let style = match word {
        "allowed" => colour(AnsiColor::Green),
        "denied" => colour(AnsiColor::Red),
        "audited" => colour(AnsiColor::Yellow),
        _ => Style::new(),
    };
    format!("{style}{}{style:#}", escape(word))
}

/// Whether stdout shows colours.
pub fn colours() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// Whether stderr shows colours.
pub fn error_colours() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// Text from outside without what a terminal obeys or what misleads the eye: control characters, marks that turn the direction of
/// writing, invisible and line-breaking characters become `\u{…}`. Newlines too: a name has none.
pub fn escape(text: &str) -> String {
    escape_but(text, false)
}

/// [`escape`] for text of several lines.
pub fn escape_lines(text: &str) -> String {
    escape_but(text, true)
}

fn escape_but(text: &str, lines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if hostile(c) && !(lines && matches!(c, '\n' | '\t')) {
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

fn hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn colour(c: AnsiColor) -> Style {
    Style::new().fg_color(Some(c.into()))
}

/// JSON or YAML, ending with a newline.
fn serialized<T: Serialize>(value: &T, format: Format) -> Result<String, RenderError> {
    let json = ascii_where_it_matters(&serde_json::to_string_pretty(value)?) + "\n";
    if format != Format::Yaml {
        return Ok(json);
    }
    let yaml = serde_saphyr::to_string(value).map_err(|e| RenderError::Yaml(e.to_string()))?;
    // JSON is YAML too, and can write any character in ASCII.
    if yaml.chars().any(|c| hostile(c) && c != '\n') { Ok(json) } else { Ok(yaml) }
}

/// JSON with hostile characters as `\uXXXX`: the same value. They can only stand in strings.
fn ascii_where_it_matters(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && hostile(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// A table without lines: headers are the names of the columns, one row per line, numbers to the right.
fn table<T: Serialize>(rows: &[T], columns: &[&str]) -> Result<String, RenderError> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if colours() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(columns.iter().map(|c| Cell::new(c.to_uppercase())));
    for row in rows {
        let Value::Object(fields) = serde_json::to_value(row)? else { continue };
        table.add_row(columns.iter().map(|c| cell(c, fields.get(*c).unwrap_or(&Value::Null))));
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    Ok(table.lines().map(|line| line.trim_end().to_owned() + "\n").collect())
}

fn cell(column: &str, value: &Value) -> Cell {
    match value {
        Value::Null => Cell::new("-"),
        Value::Bool(b) => Cell::new(if *b { "yes" } else { "no" }),
        Value::Number(n) => Cell::new(n).set_alignment(CellAlignment::Right),
        Value::String(s) if s.is_empty() => Cell::new("-"),
        Value::String(s) => match (column, s.as_str()) {
            ("verdict", "allowed") => Cell::new(s).fg(Color::Green),
            ("verdict", "denied") => Cell::new(s).fg(Color::Red),
            ("verdict", "audited") => Cell::new(s).fg(Color::Yellow),
            _ => Cell::new(escape(s)),
        },
        Value::Array(_) | Value::Object(_) => Cell::new(escape(&value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Row {
        container: &'static str,
        verdict: &'static str,
        packets: u64,
        rule: Option<&'static str>,
    }

    const HOSTILE: &str = "a\u{1b}[31mb\u{202e}c\u{9b}d\ne\u{200b}\u{e0041}";

    fn rows() -> Vec<Row> {
        vec![
            Row { container: "hydra-postgres", verdict: "allowed", packets: 12, rule: Some("db-clients") },
            Row { container: HOSTILE, verdict: "denied", packets: 1_234_567, rule: None },
        ]
    }

    #[test]
    fn a_table_has_one_line_per_row_whatever_the_names() {
        let text = table(&rows(), &["container", "verdict", "packets", "rule"]).unwrap();
        insta::assert_snapshot!(anstream::adapter::strip_str(&text), @r"
        CONTAINER                                            VERDICT  PACKETS  RULE
        hydra-postgres                                       allowed       12  db-clients
        a\u{1b}[31mb\u{202e}c\u{9b}d\u{a}e\u{200b}\u{e0041}  denied   1234567  -
        ");
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn json_is_the_same_value_and_harmless() {
        let text = serialized(&rows(), Format::Json).unwrap();
        assert!(!text.chars().any(|c| hostile(c) && c != '\n'), "{text}");
        let back: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(back[1]["container"], HOSTILE);
    }

    #[test]
    fn yaml_is_the_same_value_and_harmless() {
        for (row, name) in rows().into_iter().zip(["hydra-postgres", HOSTILE]) {
            let text = serialized(&[row], Format::Yaml).unwrap();
            assert!(!text.chars().any(|c| hostile(c) && c != '\n'), "{text}");
            let back: Vec<Value> = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(back[0]["container"], name);
        }
    }

    #[test]
    fn an_error_has_its_hint_after_a_blank_line_and_obeys_nobody() {
        let text = error_text("cannot read `a\u{1b}[2J`: No such file or directory", Some("`ls -l`"));
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "error: cannot read `a\\u{1b}[2J`: No such file or directory\n\nhint: `ls -l`"
        );
    }
}
