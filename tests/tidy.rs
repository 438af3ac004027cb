//! The rules of this code base that the compiler and clippy do not check.
//!
//! A rule is a function from one file to what it finds there; [`RULES`] lists them, each with a
//! text that it must refuse, so that a rule which has stopped finding anything fails too.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARACTERS_MAX: usize = 100;

/// Words that mark unfinished or forgotten work. Joined here, or this file would hold them.
const BANNED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("db", "g!"),
    concat!("unimple", "mented!"),
    concat!("to", "do!"),
];

/// What a part of the data path must not import: stages meet only in `agent`.
const FORBIDDEN_IMPORTS: &[(&str, &[&str])] = &[
    ("clock", &["metric", "collect", "queue", "forward", "link", "control", "backend", "config"]),
    ("units", &["metric", "collect", "queue", "forward", "link", "control", "backend", "config"]),
    ("metric", &["collect", "queue", "forward", "link", "control", "backend", "agent", "cli"]),
    ("collect", &["queue", "forward", "link", "control", "backend", "agent", "cli"]),
    ("intake", &["collect", "queue", "forward", "link", "control", "backend", "agent", "cli"]),
    ("encoding", &["metric", "collect", "queue", "forward", "link", "control", "backend"]),
    ("socket", &["metric", "collect", "queue", "forward", "link", "control", "backend"]),
    ("queue", &["metric", "collect", "forward", "link", "control", "backend", "agent", "cli"]),
    ("forward", &["collect", "queue", "link", "control", "backend", "agent", "cli"]),
    ("link", &["collect", "queue", "forward", "control", "backend", "agent", "cli"]),
    ("control", &["collect", "forward", "link", "backend", "agent", "cli"]),
    ("backend", &["collect", "queue", "forward", "link", "control", "agent", "cli"]),
    ("agent", &["backend", "cli"]),
    ("config", &["backend", "agent", "cli"]),
];

/// The only places that start tasks: elsewhere a task would outlive its owner unseen.
const SPAWNERS: &[&str] =
    &["src/agent", "src/backend.rs", "src/backend/serve", "src/cli/", "src/control"];

/// Files that may hold characters beyond ASCII, with the reason.
const NON_ASCII: &[(&str, &str)] = &[];

/// The first part of a path that a document may name, when it means a file of this repository.
const ROOTS: &[&str] = &["src/", "tests/", "docs/", "benches/", "fuzz/", ".ci/"];

/// What people write of the fuzz package; beside it lies what a fuzzer and a compiler write.
const FUZZ: [&str; 3] = ["fuzz/src", "fuzz/fuzz_targets", "fuzz/examples"];

/// One text file of the repository, its path relative to the root.
struct File {
    path: String,
    text: String,
}

struct Finding {
    line: usize,
    message: String,
}

/// A rule, the files it reads, and a file that it must refuse.
struct Rule {
    name: &'static str,
    applies: fn(&str) -> bool,
    find: fn(&File) -> Vec<Finding>,
    refused: fn() -> File,
}

const RULES: &[Rule] = &[
    Rule {
        name: "a file has at most 600 lines",
        applies: is_source,
        find: long_file,
        refused: || file("src/queue.rs", "// line\n".repeat(601)),
    },
    Rule {
        name: "a function has at most 70 lines",
        applies: is_source,
        find: long_functions,
        refused: || file("src/queue.rs", format!("fn f() {{\n{}}}\n", "    g();\n".repeat(69))),
    },
    Rule {
        name: "a line has at most 100 characters",
        applies: is_rust,
        find: long_lines,
        refused: || file("src/queue.rs", format!("// {}\n", "x".repeat(98))),
    },
    Rule {
        name: "no word for unfinished work",
        applies: |_| true,
        find: banned_words,
        refused: || file("docs/x.md", concat!("TO", "DO: write this")),
    },
    Rule {
        name: "an allowed lint has a reason",
        applies: is_rust,
        find: lints_without_reason,
        refused: || file("src/queue.rs", "#[allow(\n    dead_code\n)]\nfn f() {}\n"),
    },
    Rule {
        name: "only the command line prints",
        applies: |path| is_source(path) && !path.starts_with("src/cli") && path != "src/main.rs",
        find: prints,
        refused: || file("src/queue.rs", "fn f() {\n    eprintln!(\"x\");\n}\n"),
    },
    Rule {
        name: "only queue/store/sled_segment.rs names sled",
        applies: |path| is_source(path) && path != "src/queue/store/sled_segment.rs",
        find: sled_names,
        refused: || file("src/queue.rs", "use sled;\n"),
    },
    Rule {
        name: "only main.rs is unsafe, once",
        applies: |path| is_source(path) && path != "src/main.rs",
        find: unsafe_code,
        refused: || file("src/queue.rs", "fn f() {\n    unsafe { g() }\n}\n"),
    },
    Rule {
        name: "a stage does not import another",
        applies: is_source,
        find: stage_imports,
        refused: || file("src/queue/log/ring.rs", "use crate::{clock, forward::Batch};\n"),
    },
    Rule {
        name: "tasks are started by their owners only",
        applies: |path| is_source(path) && !SPAWNERS.iter().any(|owner| path.starts_with(owner)),
        find: spawns,
        refused: || file("src/link.rs", "fn f() {\n    tokio::spawn(async {});\n}\n"),
    },
    Rule {
        name: "source is ASCII",
        applies: |path| is_rust(path) && !NON_ASCII.iter().any(|(listed, _)| *listed == path),
        find: non_ascii,
        refused: || file("src/queue.rs", "// caf\u{e9}\n"),
    },
    Rule {
        name: "a document names files that exist",
        applies: |path| has_extension(path, "md") || is_rust(path),
        find: missing_files,
        refused: || file("README.md", "See [the format](docs/NOWHERE.md).\n"),
    },
    Rule {
        name: "every file is a module of its parent",
        applies: is_rust,
        find: orphans,
        refused: || file("src/nobody.rs", ""),
    },
];

#[test]
fn repository_keeps_its_rules() {
    let files = repository();
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the sources are found");
    let mut report = String::new();
    for rule in RULES {
        for file in files.iter().filter(|file| (rule.applies)(&file.path)) {
            for Finding { line, message } in (rule.find)(file) {
                writeln!(report, "{}:{line}: {message} ({})", file.path, rule.name)
                    .expect("into a string");
            }
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn every_rule_refuses_something() {
    for rule in RULES {
        let file = (rule.refused)();
        assert!((rule.applies)(&file.path), "{}: does not read {}", rule.name, file.path);
        assert!(!(rule.find)(&file).is_empty(), "{}: finds nothing in {}", rule.name, file.path);
    }
}

#[test]
fn exceptions_are_needed() {
    for (path, reason) in NON_ASCII {
        let text = fs_err::read_to_string(root().join(path)).expect("the file exists");
        assert!(!text.is_ascii(), "{path} is ASCII now, and needs no exception: {reason}");
    }
}

#[test]
fn format_document_has_the_offsets_of_the_code() {
    let read = |path| fs_err::read_to_string(root().join(path)).expect("the file exists");
    let (code, document) = (read("src/queue/format/block.rs"), read("docs/FORMAT.md"));
    let offsets = code.lines().filter_map(|line| {
        let (name, value) =
            line.trim().strip_prefix("pub(super) const ")?.split_once(": usize = ")?;
        Some((name, value.trim_end_matches(';')))
    });
    let offsets: Vec<_> = offsets.collect();
    assert!(offsets.len() > 10, "the constants of `mod offset` are found");
    for (name, offset) in offsets {
        assert!(document.contains(&format!("\n| {offset} | ")), "{name} at {offset}");
    }
}

// === what a rule looks at ===

fn long_file(file: &File) -> Vec<Finding> {
    let lines = file.text.lines().count();
    let message = format!("{lines} lines: split it by what its parts are for");
    if lines > FILE_LINES_MAX { vec![Finding { line: lines, message }] } else { Vec::new() }
}

/// Relies on rustfmt: a function ends at the first `}` that is indented as its `fn` is.
fn long_functions(file: &File) -> Vec<Finding> {
    let lines: Vec<&str> = file.text.lines().collect();
    let mut findings = Vec::new();
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| begins_function(line)) {
        let indent = &line[..line.len() - line.trim_start().len()];
        let body = lines[start..].iter().position(|line| line.ends_with(['{', ';', '}']));
        if !body.is_some_and(|body| lines[start + body].ends_with('{')) {
            continue; // a declaration, or a function of one line
        }
        let end = format!("{indent}}}");
        let length = lines[start..].iter().position(|line| *line == end).map_or(0, |at| at + 1);
        if length > FUNCTION_LINES_MAX {
            let message = format!("a function of {length} lines: give its steps names");
            findings.push(Finding { line: start + 1, message });
        }
    }
    findings
}

/// Tests are left to rustfmt, which keeps code short but not what a test quotes from `/proc`.
fn long_lines(file: &File) -> Vec<Finding> {
    each_line(&production(file), |line| {
        let length = line.chars().count();
        (length > LINE_CHARACTERS_MAX).then(|| format!("{length} characters"))
    })
}

fn banned_words(file: &File) -> Vec<Finding> {
    each_line(file, |line| {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '!' && c != '_');
        let word = words.find(|word| BANNED.contains(word))?;
        Some(format!("`{word}`: finish it, or say in an issue what is missing"))
    })
}

fn lints_without_reason(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    for start in ["#[allow(", "#![allow(", "#[expect(", "#![expect("] {
        for (at, _) in file.text.match_indices(start) {
            let line_start = file.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
            if !file.text[line_start..at].trim().is_empty() {
                continue; // in a comment or a string
            }
            let attribute = file.text[at..].split(")]").next().unwrap_or_default();
            if !attribute.contains("reason = ") {
                let line = file.text[..at].lines().count() + 1;
                findings.push(Finding { line, message: "say why: reason = \"...\"".to_owned() });
            }
        }
    }
    findings
}

fn prints(file: &File) -> Vec<Finding> {
    each_line(&production(file), |line| {
        let found = ["print!(", "println!(", "eprint!(", "eprintln!("];
        let found = found.into_iter().find(|print| words_begin(code(line), print))?;
        Some(format!("`{found}..)`: log it, or return it to the command"))
    })
}

fn sled_names(file: &File) -> Vec<Finding> {
    each_line(file, |line| {
        let named = words_begin(code(line), "sled::") || words_begin(code(line), "use sled");
        named.then(|| "the disk is the seam to sled".to_owned())
    })
}

fn unsafe_code(file: &File) -> Vec<Finding> {
    each_line(file, |line| {
        let found = words_begin(code(line), "unsafe ") || line.contains("unsafe_code");
        (found && !line.contains("forbid(unsafe_code)")).then(|| "find a safe way".to_owned())
    })
}

fn stage_imports(file: &File) -> Vec<Finding> {
    let stage = file.path.trim_start_matches("src/").trim_end_matches(".rs");
    let stage = stage.split('/').next().unwrap_or_default();
    let forbidden = FORBIDDEN_IMPORTS.iter().find(|(name, _)| *name == stage);
    let Some((_, forbidden)) = forbidden else { return Vec::new() };
    let text = production(file).text.lines().map(code).collect::<Vec<_>>().join("\n");
    let mut findings = Vec::new();
    for (at, prefix) in text.match_indices("crate::") {
        for module in first_segments(&text[at + prefix.len()..]) {
            if forbidden.contains(&module) {
                let line = text[..at].lines().count();
                let message = format!("`{stage}` imports `{module}`: `agent` joins the stages");
                findings.push(Finding { line, message });
            }
        }
    }
    findings
}

fn spawns(file: &File) -> Vec<Finding> {
    each_line(&production(file), |line| {
        let spawn = ["tokio::spawn(", "task::spawn(", "thread::spawn(", "unbounded_channel("];
        let spawn = spawn.into_iter().find(|spawn| words_begin(code(line), spawn))?;
        Some(format!("`{spawn}..)`: tasks and channels are made in src/agent.rs"))
    })
}

fn non_ascii(file: &File) -> Vec<Finding> {
    each_line(file, |line| {
        let odd = line.chars().find(|character| !character.is_ascii())?;
        Some(format!("`{odd}` ({}): write it escaped, or list the file", odd.escape_unicode()))
    })
}

/// Paths in prose, and the targets of Markdown links, which are relative to the document.
fn missing_files(file: &File) -> Vec<Finding> {
    let markdown = has_extension(&file.path, "md");
    let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    each_line(file, |line| {
        if !markdown && !line.trim_start().starts_with("//") {
            return None;
        }
        let words = line.split(|c: char| c.is_whitespace() || "()[]{}`'\",;:*<>|".contains(c));
        let named = words.map(|word| word.trim_end_matches('.'));
        let named = named.filter(|word| ROOTS.iter().any(|root| word.starts_with(root)));
        let linked = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let linked = linked.filter(|link| markdown && !link.is_empty() && !link.contains("://"));
        let mut paths = named.map(PathBuf::from).chain(linked.map(|link| folder.join(link)));
        let missing = paths.find(|path| !root().join(path).exists())?;
        Some(format!("there is no {}", missing.display()))
    })
}

/// With one test binary, a test file that nothing declares would never run.
fn orphans(file: &File) -> Vec<Finding> {
    let path = Path::new(&file.path);
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    let crate_roots = ["src/lib.rs", "src/main.rs", "tests/main.rs"];
    if crate_roots.contains(&file.path.as_str())
        || ["benches/", "fuzz/"].iter().any(|own| file.path.starts_with(own))
    {
        return Vec::new();
    }
    let (name, folder) = if name == "mod" {
        let parent = folder.parent().unwrap_or(Path::new(""));
        (folder.file_name().and_then(|name| name.to_str()).unwrap_or_default(), parent)
    } else {
        (name, folder)
    };
    let parents = ["lib.rs", "main.rs", "mod.rs"].map(|parent| folder.join(parent));
    let declared = parents.into_iter().chain([folder.with_extension("rs")]).any(|parent| {
        let text = fs_err::read_to_string(root().join(parent)).unwrap_or_default();
        text.lines().any(|line| words_begin(code(line), &format!("mod {name};")))
    });
    let message = format!("no parent says `mod {name};`");
    if declared { Vec::new() } else { vec![Finding { line: 1, message }] }
}

// === reading source text ===

fn is_rust(path: &str) -> bool {
    has_extension(path, "rs")
}

fn is_source(path: &str) -> bool {
    is_rust(path) && path.starts_with("src/")
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

fn begins_function(line: &str) -> bool {
    let mut words = line.trim_start();
    for modifier in ["pub ", "pub(crate) ", "pub(super) ", "default ", "const ", "async "] {
        words = words.strip_prefix(modifier).unwrap_or(words);
    }
    words.starts_with("fn ")
}

/// The line without what is only a comment.
fn code(line: &str) -> &str {
    if line.trim_start().starts_with("//") { "" } else { line }
}

/// Whether `word` stands in `line` where no longer word ends in it.
fn words_begin(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

/// The file up to its unit tests; nothing of it when all of it is tests.
fn production(whole: &File) -> File {
    let tests_only = whole.path.ends_with("/tests.rs") || whole.path.contains("/tests/");
    let end = whole.text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(whole.text.len());
    file(&whole.path, if tests_only { "" } else { &whole.text[..end] })
}

/// The modules that a path after `crate::` starts with: one, or several in braces.
fn first_segments(path: &str) -> Vec<&str> {
    let Some(group) = path.strip_prefix('{') else { return vec![identifier(path)] };
    let mut segments = vec![identifier(group.trim_start())];
    let mut depth = 1;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => segments.push(identifier(group[at + 1..].trim_start())),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    segments
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn each_line(file: &File, mut find: impl FnMut(&str) -> Option<String>) -> Vec<Finding> {
    let lines = file.text.lines().enumerate();
    lines
        .filter_map(|(at, line)| find(line).map(|message| Finding { line: at + 1, message }))
        .collect()
}

fn file(path: &str, text: impl Into<String>) -> File {
    File { path: path.to_owned(), text: text.into() }
}

// === the repository ===

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file that people write here.
fn repository() -> Vec<File> {
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "docs", ".ci"].into_iter().chain(FUZZ) {
        read_folder(&root().join(folder), &mut files);
    }
    for entry in fs_err::read_dir(root()).expect("read the repository") {
        read_file(&entry.expect("read the repository").path(), &mut files);
    }
    files
}

fn read_folder(folder: &Path, files: &mut Vec<File>) {
    for entry in fs_err::read_dir(folder).expect("read a folder") {
        let path = entry.expect("read a folder").path();
        if path.is_dir() { read_folder(&path, files) } else { read_file(&path, files) }
    }
}

fn read_file(path: &Path, files: &mut Vec<File>) {
    let name = path.strip_prefix(root()).expect("below the root").to_str().expect("UTF-8");
    let written = ["rs", "md", "toml", "sql", "service"];
    if written.iter().any(|extension| has_extension(name, extension)) || name.ends_with("/run") {
        files.push(file(name, fs_err::read_to_string(path).expect("read a file")));
    }
}
