//! The only place of the library that writes to a terminal: tables, JSON and YAML to stdout, words to stderr. Whatever comes from
//! outside (names, labels, what the system says) leaves here without anything that a terminal would obey.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;

use anstyle::{AnsiColor, Style};
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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
    Write(io::Error),
    /// Whoever read stdout went away: the end of what has no end of its own, and no error.
    #[error("nobody reads the standard output any more")]
    HungUp,
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

/// Rows that come one by one without end, each shown as it comes: rows of a table, JSON lines, or YAML documents.
#[derive(Debug)]
pub struct Stream {
    format: Format,
    columns: &'static [&'static str],
    /// Of the columns, in characters: as wide as what has been seen.
    widths: Vec<usize>,
    begun: bool,
}

impl Stream {
    /// In the format that was asked for; else a table on a terminal, and JSON lines for a program.
    pub fn new(columns: &'static [&'static str], asked: Option<Format>) -> Self {
        let own = if io::stdout().is_terminal() { Format::Table } else { Format::Json };
        let widths = columns.iter().map(|c| c.len()).collect();
        Self { format: asked.unwrap_or(own), columns, widths, begun: false }
    }

    /// One more. [`RenderError::HungUp`] when nobody reads.
    pub fn row<T: Serialize>(&mut self, row: &T) -> Result<(), RenderError> {
        let text = match self.format {
            Format::Table => self.table_row(&serde_json::to_value(row)?),
            Format::Json => ascii_where_it_matters(&serde_json::to_string(row)?) + "\n",
            Format::Yaml => format!("---\n{}", serialized(row, Format::Yaml)?),
        };
        write(&text)
    }

    fn table_row(&mut self, row: &Value) -> String {
        let cells: Vec<_> = self.columns.iter().map(|c| row.get(c).unwrap_or(&Value::Null)).collect();
        let texts: Vec<String> = cells.iter().map(|value| plain(value)).collect();
        for (width, text) in self.widths.iter_mut().zip(&texts) {
            *width = (*width).max(text.chars().count());
        }
        let mut out = String::new();
        if !self.begun {
            let heads: Vec<_> = self.columns.iter().zip(&self.widths).collect();
            let line: Vec<String> =
                heads.iter().map(|(c, width)| format!("{:<1$}", c.to_uppercase(), **width)).collect();
            out = line.join("  ").trim_end().to_owned() + "\n";
            self.begun = true;
        }
        let mut line = String::new();
        for (((column, value), text), width) in self.columns.iter().zip(&cells).zip(&texts).zip(&self.widths)
        {
            let room = " ".repeat(width - text.chars().count());
            let shown = if *column == "verdict" { verdict(text) } else { text.clone() };
            let _ = if value.is_number() {
                write!(line, "{room}{shown}  ")
            } else {
                write!(line, "{shown}{room}  ")
            };
        }
        out + line.trim_end() + "\n"
    }
}

/// Text to stdout as it is; a reader that went away is not an error. Anything from outside in it must have been through
/// [`escape`].
pub fn data(text: &str) -> Result<(), RenderError> {
    match write(text) {
        Err(RenderError::HungUp) => Ok(()),
        other => other,
    }
}

fn write(text: &str) -> Result<(), RenderError> {
    let mut out = anstream::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| {
        if e.kind() == io::ErrorKind::BrokenPipe { RenderError::HungUp } else { RenderError::Write(e) }
    })
}

/// Waits until whoever reads stdout has gone, which a writer that has nothing to write does not learn otherwise. For ever where
/// stdout is a file.
pub async fn hung_up() {
    let (tell, told) = tokio::sync::oneshot::channel();
    // A thread of its own: it may wait to the end of the process.
    std::thread::spawn(move || {
        let out = io::stdout();
        loop {
            // Asked for nothing: errors and hang-ups are told all the same (poll(2)).
            let mut watched = [PollFd::new(out.as_fd(), PollFlags::empty())];
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) => return tell.send(()),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(()),
            }
        }
    });
    if told.await.is_err() {
        std::future::pending::<()>().await;
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

/// A warning of one line, or of a policy's text with its place, to stderr.
pub fn warning(message: &str) {
    let style = colour(AnsiColor::Yellow).bold();
    let message = message.strip_prefix("warning: ").unwrap_or(message);
    words(&format!("{style}warning{style:#}: {}", escape_lines(message)));
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
    let cell = Cell::new(plain(value));
    match (column, value.as_str()) {
        ("verdict", Some("allowed")) => cell.fg(Color::Green),
        ("verdict", Some("denied")) => cell.fg(Color::Red),
        ("verdict", Some("audited")) => cell.fg(Color::Yellow),
        _ if value.is_number() => cell.set_alignment(CellAlignment::Right),
        _ => cell,
    }
}

/// What stands in a table's cell.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(b) => if *b { "yes" } else { "no" }.into(),
        Value::String(s) if s.is_empty() => "-".into(),
        Value::String(s) => escape(s),
        Value::Number(_) | Value::Array(_) | Value::Object(_) => escape(&value.to_string()),
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
    fn rows_that_come_one_by_one_stand_below_their_heads() {
        let mut stream = Stream {
            format: Format::Table,
            columns: &["container", "verdict", "packets", "rule"],
            widths: vec![9, 7, 7, 4],
            begun: false,
        };
        let text: String =
            rows().iter().map(|row| stream.table_row(&serde_json::to_value(row).unwrap())).collect();
        insta::assert_snapshot!(anstream::adapter::strip_str(&text), @r"
        CONTAINER       VERDICT  PACKETS  RULE
        hydra-postgres  allowed       12  db-clients
        a\u{1b}[31mb\u{202e}c\u{9b}d\u{a}e\u{200b}\u{e0041}  denied   1234567  -
        ");
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
