//! `agent check`.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::screen::Look;
use super::{run, terminal};
use crate::check::{self, Finding, Scope, Verdict};
use crate::clock;
use crate::config::Config;

/// Something is missing.
const EXIT_LIMITED: u8 = 2;
/// Room for the longest verdict, and a space.
const INDENT: usize = 10;

/// What to try.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this; without it everything that is enabled.
    #[arg(value_enum)]
    part: Option<Part>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// A part of the agent.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Part {
    /// PostgreSQL's statistics and its log.
    Postgres,
}

/// Runs the command.
pub async fn run(args: Args, config: &Config) -> ExitCode {
    let scope = match args.part {
        None => Scope::All,
        Some(Part::Postgres) => Scope::Postgres,
    };
    let findings = check::check(config, run::identity(config), scope).await;
    let told = if args.json {
        let findings: Vec<_> = findings.iter().map(|finding| serde_json::json!(finding)).collect();
        terminal::told(&format!("{:#}", serde_json::Value::Array(findings)))
    } else {
        let screen = super::screen::Screen::stdout(clock::now());
        let width = screen.width.unwrap_or(80);
        terminal::told(&shown(&findings, screen.look, width))
    };
    if told != ExitCode::SUCCESS {
        return told;
    }
    match findings.iter().map(|finding| finding.verdict).max() {
        Some(Verdict::Failed) => ExitCode::FAILURE,
        Some(Verdict::Limited) => ExitCode::from(EXIT_LIMITED),
        _ => ExitCode::SUCCESS,
    }
}

/// A paragraph for each part, a line or more for each finding.
fn shown(findings: &[Finding], look: Look, width: usize) -> String {
    let mut text = String::new();
    let mut last = None;
    for finding in findings {
        let part = (finding.part, finding.instance.as_deref());
        if last.replace(part) != Some(part) {
            let gap = if text.is_empty() { "" } else { "\n" };
            let instance = finding.instance.as_ref().map(|instance| format!(" of {instance}"));
            let _ = writeln!(text, "{gap}{}{}", finding.part, instance.unwrap_or_default());
        }
        let (word, colour) = match finding.verdict {
            Verdict::Ok => ("ok", "\x1b[38;5;10m"),
            Verdict::Could => ("could", "\x1b[38;5;8m"),
            Verdict::Limited => ("limited", "\x1b[38;5;11m"),
            Verdict::Failed => ("failed", "\x1b[38;5;9m"),
        };
        let (begin, end) = if look == Look::Coloured { (colour, "\x1b[39m") } else { ("", "") };
        let padding = " ".repeat(INDENT - 2 - word.len());
        let _ = write!(text, "  {begin}{word}{end}{padding}");
        folded(&format!("{}: {}", finding.of, finding.says), width, &mut text);
        if let Some(hint) = &finding.hint {
            text.push_str(&" ".repeat(INDENT));
            folded(&format!("hint: {hint}"), width, &mut text);
        }
        for statement in &finding.sql {
            // To paste: never folded.
            let _ = writeln!(text, "{}{statement}", " ".repeat(INDENT));
        }
    }
    text
}

/// Words in lines of this width; the first line has begun, the others are indented.
fn folded(words: &str, width: usize, text: &mut String) {
    let mut column = INDENT;
    for (nth, word) in words.split_whitespace().enumerate() {
        let length = word.chars().count();
        if nth > 0 && column + 1 + length > width {
            let _ = write!(text, "\n{}", " ".repeat(INDENT));
            column = INDENT;
        } else if nth > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_fit_the_screen_and_statements_stay_whole() {
        let finding = |part: &'static str, verdict, says: &str, sql: &[&str]| Finding {
            part,
            instance: (part == "pg_stats").then(|| "main".to_owned()),
            of: "role".to_owned(),
            verdict,
            says: says.to_owned(),
            hint: (verdict == Verdict::Failed).then(|| "look at it".to_owned()),
            sql: sql.iter().map(ToString::to_string).collect(),
        };
        let grant = "GRANT EXECUTE ON FUNCTION pg_current_logfile(text) TO \"agent\";";
        let findings = [
            finding("pg_stats", Verdict::Ok, "has what it needs", &[]),
            finding("pg_stats", Verdict::Limited, "one two three four five six seven", &[grant]),
            finding("backend", Verdict::Failed, "away", &[]),
        ];
        let expected = format!(
            "pg_stats of main\n  ok      role: has what it needs\n  limited role: one two three four five\n\
             {0}six seven\n{0}{grant}\n\nbackend\n  failed  role: away\n{0}hint: look at it\n",
            " ".repeat(INDENT)
        );
        assert_eq!(shown(&findings, Look::Plain, 39), expected);
    }
}
