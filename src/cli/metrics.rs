//! `agent metrics`.

use std::process::ExitCode;

use comfy_table::{Cell, ColumnConstraint, ContentArrangement};

use super::screen::Screen;
use super::{EXIT_USAGE, terminal};
use crate::clock;
use crate::metric::catalogue::{self, DOCUMENTS, Document};

/// What to print.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// One type of document, such as sysstat; without it all.
    #[arg(value_name = "TYPE")]
    name: Option<String>,
    /// For programs.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// As docs/METRICS.md is.
    #[arg(long, conflicts_with = "name")]
    markdown: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let wanted = |document: &&Document| args.name.as_deref().is_none_or(|n| n == document.name);
    let documents: Vec<&Document> = DOCUMENTS.iter().filter(wanted).collect();
    if documents.is_empty() {
        let names: Vec<&str> = DOCUMENTS.iter().map(|document| document.name).collect();
        let name = args.name.as_deref().unwrap_or_default();
        let hint = format!("they are {}", names.join(", "));
        terminal::complain(&format!("no document has the type {name:?}\n  hint: {hint}"));
        return ExitCode::from(EXIT_USAGE);
    }
    let text = if args.markdown {
        catalogue::markdown()
    } else if args.json {
        let all: Vec<_> = documents.iter().map(|document| document.json()).collect();
        format!("{:#}", serde_json::Value::Array(all))
    } else {
        let screen = Screen::stdout(clock::now());
        let tables: Vec<String> =
            documents.iter().map(|document| table(document, &screen)).collect();
        tables.join("\n")
    };
    terminal::told(&text)
}

fn table(document: &Document, screen: &Screen) -> String {
    let header = ["field", "unit", "is a", "meaning", "from"];
    // Where there is little room, one can do without the last.
    let columns = if screen.is_narrow() { 4 } else { 5 };
    let mut table = screen.table(&header[..columns]);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = screen.width.and_then(|width| u16::try_from(width).ok()) {
        table.set_width(width);
    }
    for column in table.column_iter_mut().take(2) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    for entry in document.entries() {
        let mut meaning = entry.meaning();
        if let Some(majors) = entry.majors() {
            meaning = format!("{meaning} {majors}.");
        }
        let (unit, source) = (entry.field.unit, entry.field.source);
        let row = [entry.path.as_str(), unit, &entry.role(), &meaning, source];
        table.add_row(row.into_iter().take(columns).map(Cell::new));
    }
    format!("{}: {}\n\n{}", document.name, document.about(), screen.print(table))
}
