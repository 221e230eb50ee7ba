//! docs/FAULTS.md: every test that it names is there, is a test, and ends in a comparison of what
//! was published with what is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{files, root};

/// What compares each published event with each stored one, and why it counts as the oracle. A test
/// of docs/FAULTS.md calls one of them, itself or through functions of the tests.
const ORACLES: &[(&str, &str)] = &[
    (
        "oracle::holds",
        "the verdict itself: lost, doubled, phantom, altered and unresolved events are none",
    ),
    (
        "scene::holds",
        "waits for every event, stops the relay, and asks the verdict about every row of the table",
    ),
    (
        "scene::holds_when_drained",
        "drains, and asks the verdict about every row of the table",
    ),
    (
        "outbox::exactly_once",
        "for tests without a sink: every committed event is in one sealed batch, and no other is",
    ),
    (
        "queue::outbox_holds",
        "for intakes: every entry that its producer knows to be kept is one row of the outbox, and no other is",
    ),
    (
        "world::assert_exact",
        "for the spine on fakes: what the fake sink stores is what the fake database committed",
    ),
    (
        "world::assert_exact_for_good",
        "the same after every insert that was still on its way has arrived",
    ),
    (
        "replicated::holds",
        "what `scene::holds` does, on each of two replicas",
    ),
    (
        "sinks::table_holds",
        "the verdict about every row of each of two tables",
    ),
    (
        "replicated::hold_both",
        "the verdict about every row of each of two replicas",
    ),
    (
        "visit::holds_in_every_state",
        "for the model: no event is doubled or phantom in any state, and in no last one is one lost",
    ),
    (
        "visit::breaks",
        "for the model without a protection: such a state is found",
    ),
    (
        "simulate::run_and_judge",
        "for the simulator: every event of every sink and view, and every invariant that was watched",
    ),
    (
        "sink::holds",
        "for the conformance suite of sinks: what is stored is what was sealed, byte for byte",
    ),
];

/// The sections with tables, in the order of the document.
const SECTIONS: [&str; 9] = [
    "Batches",
    "Ring",
    "Exactly once",
    "ClickHouse",
    "Data",
    "Environment",
    "High availability",
    "Intakes",
    "Model and simulation",
];

/// Where a case runs.
const SERVERS: [&str; 13] = [
    "PostgreSQL 15",
    "PostgreSQL 16",
    "PostgreSQL 17",
    "PostgreSQL 18",
    "ClickHouse 18.16",
    "ClickHouse 26.9",
    "ZooKeeper",
    "PgBouncer",
    "Redis 7",
    "fake ClickHouse",
    "fakes",
    "simulator",
    "model",
];

/// A function of the tests, or of what they stand on.
struct Function {
    /// The file's stem.
    module: String,
    path: String,
    name: String,
    body: String,
    is_test: bool,
    is_ignored: bool,
}

/// Every function of the integration tests and of the testkit.
struct Functions {
    all: Vec<Function>,
    /// The text of each file.
    texts: BTreeMap<String, String>,
}

impl Functions {
    fn read() -> Result<Self> {
        let mut texts = files(&["rs"])?;
        texts.retain(|path, _| {
            path.contains("/tests/") || path.starts_with("crates/pillarbox-testkit/src/")
        });
        let all = texts.iter().flat_map(|(path, text)| functions(path, text));
        let all = all.collect();
        Ok(Self { all, texts })
    }

    fn named<'a>(&'a self, module: &'a str, name: &'a str) -> impl Iterator<Item = &'a Function> {
        let is_it = move |f: &&Function| f.module == module && f.name == name;
        self.all.iter().filter(is_it)
    }

    /// Whether it calls an oracle, or a function of the tests that does.
    fn ends_in_the_oracle(&self, function: &Function) -> bool {
        let mut open = vec![function];
        let mut seen = BTreeSet::new();
        while let Some(function) = open.pop() {
            if !seen.insert((&function.path, &function.name)) {
                continue;
            }
            let calls = calls(&function.body);
            let is_oracle =
                |call: &&str| ORACLES.iter().any(|(oracle, _)| named(oracle).1 == *call);
            if calls.iter().any(is_oracle) {
                return true;
            }
            open.extend(calls.iter().flat_map(|call| self.called(function, call)));
        }
        false
    }

    /// What a call means: a function of the same file, else one that the file imports by its name.
    fn called<'a>(&'a self, from: &'a Function, call: &'a str) -> Vec<&'a Function> {
        let here = |f: &&Function| f.path == from.path && f.name == call;
        let found: Vec<&Function> = self.all.iter().filter(here).collect();
        if !found.is_empty() {
            return found;
        }
        let imported = imports(&self.texts[&from.path]);
        let elsewhere = |f: &&Function| {
            f.name == call && imported.contains(&(f.module.as_str(), f.name.as_str()))
        };
        self.all.iter().filter(elsewhere).collect()
    }
}

/// `module::name` in its parts.
fn named(path: &str) -> (&str, &str) {
    path.split_once("::").unwrap_or((path, ""))
}

/// The functions of a file, by rustfmt's indentation.
fn functions(path: &str, text: &str) -> Vec<Function> {
    const QUALIFIERS: [&str; 5] = ["pub", "pub(crate)", "pub(super)", "async", "const"];
    let module = Path::new(path).file_stem().and_then(|stem| stem.to_str());
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        // A macro that makes modules has its functions behind a `$(mod name {`.
        let code = line.trim_start();
        let Some((before, after)) = code.split_once("fn ") else {
            continue;
        };
        if !before
            .split_whitespace()
            .all(|word| QUALIFIERS.contains(&word))
        {
            continue;
        }
        let close = format!("{}}}", " ".repeat(line.len() - code.len()));
        let length = lines[start..].iter().position(|line| *line == close);
        let attributes: Vec<&str> = lines[..start]
            .iter()
            .rev()
            .map(|line| line.trim_start())
            .take_while(|line| line.starts_with("#[") || line.starts_with("///"))
            .collect();
        let has = |attribute: &str| attributes.iter().any(|line| line.starts_with(attribute));
        found.push(Function {
            module: module.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            name: after
                .split(['(', '<'])
                .next()
                .unwrap_or_default()
                .to_owned(),
            body: lines[start + 1..start + length.unwrap_or(0).max(1)].join("\n"),
            is_test: has("#[test]") || has("#[tokio::test"),
            is_ignored: has("#[ignore"),
        });
    }
    found
}

/// The names before an opening parenthesis.
fn calls(body: &str) -> BTreeSet<&str> {
    let code = body
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| {
        line.match_indices('(').filter_map(|(at, _)| {
            let before = &line[..at];
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let name = &before[before.trim_end_matches(is_name).len()..];
            (!name.is_empty()).then_some(name)
        })
    })
    .collect()
}

/// `(module, name)` of each import from a module of the same crate.
fn imports(text: &str) -> BTreeSet<(&str, &str)> {
    let mut found = BTreeSet::new();
    for from in ["use crate::", "use super::"] {
        for rest in text.split(from).skip(1) {
            let statement = rest.split(';').next().unwrap_or_default();
            let Some((path, names)) = statement.rsplit_once("::") else {
                continue;
            };
            // `a::b::{c, d}`, or `a::b::c`.
            let module = path.rsplit("::").next().unwrap_or_default();
            let names = names.split(['{', '}', ',', '\n']).map(str::trim);
            found.extend(names.map(|name| (module, name)));
        }
    }
    found
}

/// A row of a table.
#[derive(Debug)]
struct Case {
    section: String,
    case: String,
    tests: Vec<String>,
    servers: String,
}

/// The rows of the document.
fn document() -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(root()?.join("docs/FAULTS.md"))?;
    let mut cases = Vec::new();
    let mut section = "";
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        } else if line.starts_with('|') && section != "What cannot be tested here" {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if cells[0] == "case" || cells[0].starts_with("---") {
                continue;
            }
            let [case, expected, tests, servers] = cells[..] else {
                bail!("{section}: a row has {} cells: {line}", cells.len());
            };
            ensure!(!expected.is_empty(), "{section}: {case}: nothing expected");
            let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned);
            cases.push(Case {
                section: section.to_owned(),
                case: case.to_owned(),
                tests: tests.collect(),
                servers: servers.to_owned(),
            });
        }
    }
    Ok(cases)
}

#[test]
fn every_fault_names_tests_that_end_in_the_oracle() -> Result<()> {
    let functions = Functions::read()?;
    let cases = document()?;
    let mut offences = Vec::new();
    for case in &cases {
        let place = format!("{}: {}", case.section, case.case);
        let mut has_run = false;
        for test in &case.tests {
            let (module, name) = named(test);
            let found: Vec<&Function> = functions.named(module, name).collect();
            if !found.iter().any(|function| function.is_test) {
                offences.push(format!("{place}: {test} is not a test"));
            } else if !found.iter().all(|f| functions.ends_in_the_oracle(f)) {
                offences.push(format!("{place}: {test} does not end in the oracle"));
            }
            has_run |= found.iter().any(|function| !function.is_ignored);
        }
        if !has_run {
            offences.push(format!("{place}: no test that make test runs"));
        }
        for server in case.servers.split(", ") {
            if !SERVERS.contains(&server) {
                offences.push(format!("{place}: {server:?} is none of {SERVERS:?}"));
            }
        }
    }
    for section in SECTIONS {
        if !cases.iter().any(|case| case.section == section) {
            offences.push(format!("{section} has no row"));
        }
    }
    assert!(offences.is_empty(), "{offences:#?}");
    Ok(())
}

/// An oracle's name means the oracle wherever it is called.
#[test]
fn every_oracle_is_there_and_its_name_means_nothing_else() -> Result<()> {
    let functions = Functions::read()?;
    for (oracle, reason) in ORACLES {
        let (module, name) = named(oracle);
        assert!(
            functions.named(module, name).next().is_some(),
            "{oracle} ({reason}) does not exist"
        );
    }
    let listed: BTreeSet<&str> = ORACLES.iter().map(|(oracle, _)| *oracle).collect();
    for function in &functions.all {
        let is_namesake = listed.iter().any(|oracle| named(oracle).1 == function.name);
        let itself = format!("{}::{}", function.module, function.name);
        assert!(
            !is_namesake || listed.contains(itself.as_str()),
            "{} has the name of an oracle; list it with a reason, or rename it",
            function.path
        );
    }
    Ok(())
}

/// The rule above would be worth nothing if it found the oracle everywhere.
#[test]
fn a_test_without_a_comparison_is_found_out() -> Result<()> {
    let functions = Functions::read()?;
    for test in [
        "killed::every_step_of_the_spine_has_a_case",
        "ledger::the_first_outcome_wins",
        "tenure::a_relay_that_beats_is_not_displaced",
        "trouble::a_forgotten_token_without_a_batch_column_is_left_to_people",
    ] {
        let (module, name) = named(test);
        let found = functions.named(module, name).next();
        let function = found.with_context(|| test.to_owned())?;
        assert!(!functions.ends_in_the_oracle(function), "{test}");
    }
    let through_others = "killed::inv_2_holds_on_clickhouse_18";
    let (module, name) = named(through_others);
    let found = functions.named(module, name).next();
    assert!(functions.ends_in_the_oracle(found.context(through_others)?));
    Ok(())
}
