//! What a machine can check about the text of the project: invariants and the tests they name,
//! lengths, names, links, failpoints (STYLE 3, 4, 6, 20).

mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pillarbox_relay::failpoint::{INTAKE_STEPS, RECOVERY_STEPS, STEPS};

/// Lines of a source file without its tests.
const FILE_LINES_MAX: usize = 500;

/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

/// Names that admit anything and so collect everything.
const BANNED: [&str; 6] = ["utils", "common", "types", "helpers", "manager", "core"];

fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.ancestors().nth(2).context("the workspace")?.to_owned())
}

/// Files of the workspace with one of these extensions, by their path from the root.
fn files(extensions: &[&str]) -> Result<BTreeMap<String, String>> {
    let root = root()?;
    let mut found = BTreeMap::new();
    let mut open = vec![root.clone()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)?.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                let skipped = ["target", "node_modules", "venv"].contains(&name.as_str());
                if !skipped && !name.starts_with('.') {
                    open.push(path);
                }
                continue;
            }
            let extension = path
                .extension()
                .and_then(|e| e.to_str())
                .unwrap_or_default();
            if extensions.contains(&extension) {
                let relative = path.strip_prefix(&root)?.display().to_string();
                found.insert(relative, fs::read_to_string(&path)?);
            }
        }
    }
    Ok(found)
}

/// Whether the whole file is tests.
fn is_test(path: &str) -> bool {
    let stem = Path::new(path)
        .file_stem()
        .and_then(|s| s.to_str())
        .unwrap_or_default();
    path.contains("/tests/") || stem == "tests" || stem.ends_with("_tests")
}

/// A file without the tests at its end.
fn without_tests(text: &str) -> &str {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    &text[..end]
}

/// Names of the test functions, as `module::name`.
fn tests() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for (path, text) in files(&["rs"])? {
        let stem = Path::new(&path)
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default();
        let functions = text.lines().filter_map(|line| {
            let (before, after) = line.split_once("fn ")?;
            let plain = before
                .split_whitespace()
                .all(|word| ["async", "pub"].contains(&word));
            plain.then(|| after.split(['(', '<']).next().unwrap_or_default())
        });
        names.extend(functions.map(|function| format!("{stem}::{function}")));
    }
    Ok(names)
}

/// Each invariant of the document with its text.
fn invariants() -> Result<BTreeMap<u32, String>> {
    let text = fs::read_to_string(root()?.join("docs/INVARIANTS.md"))?;
    let mut found: BTreeMap<u32, String> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            current = None;
            let number = heading
                .strip_prefix("INV-")
                .and_then(|rest| rest.split(' ').next());
            if let Some(number) = number {
                let number = number.parse()?;
                assert!(!found.contains_key(&number), "INV-{number} is stated twice");
                found.insert(number, String::new());
                current = Some(number);
            }
        } else if let Some(number) = current {
            let section = found.entry(number).or_default();
            section.push_str(line);
            section.push('\n');
        }
    }
    Ok(found)
}

/// INV-n in any text.
fn cited(text: &str) -> BTreeSet<u32> {
    let numbers = text.split("INV-").skip(1).filter_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    numbers.collect()
}

#[test]
fn every_invariant_names_tests_that_exist() -> Result<()> {
    let (invariants, tests) = (invariants()?, tests()?);
    let numbers: Vec<u32> = invariants.keys().copied().collect();
    assert_eq!(numbers, (1..=14).collect::<Vec<_>>());
    for (number, text) in invariants {
        let named: Vec<&str> = text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.contains("::") && !word.contains(' '))
            .collect();
        let is_later = text.contains("Held from the release that brings");
        assert!(is_later || !named.is_empty(), "INV-{number} names no test");
        for name in named {
            assert!(
                tests.contains(name),
                "INV-{number} names {name}, which does not exist"
            );
        }
    }
    Ok(())
}

#[test]
fn every_cited_invariant_exists() -> Result<()> {
    let invariants = invariants()?;
    for (path, text) in files(&["rs", "sql", "md", "py", "toml"])? {
        for number in cited(&text) {
            assert!(
                invariants.contains_key(&number),
                "{path} cites INV-{number}"
            );
        }
    }
    Ok(())
}

#[test]
fn files_and_functions_are_short() -> Result<()> {
    let mut offences = Vec::new();
    for (path, text) in files(&["rs"])? {
        if is_test(&path) {
            continue;
        }
        let text = without_tests(&text);
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            offences.push(format!("{path} has {lines} lines"));
        }
        offences.extend(long_functions(&path, text));
    }
    assert!(offences.is_empty(), "{offences:#?}");
    Ok(())
}

/// Functions that are too long, by rustfmt's indentation: from `fn` to the brace below it.
fn long_functions(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let is_function = code.split("fn ").next().is_some_and(|before| {
            before.len() < code.len()
                && before
                    .split_whitespace()
                    .all(|word| word.starts_with("pub") || ["async", "const"].contains(&word))
        });
        if !is_function {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        let end = lines[start..].iter().position(|line| *line == close);
        let one_line = code.ends_with(';') || code.ends_with("{}") || code.ends_with(" }");
        let length = end.map_or(0, |end| end + 1);
        if !one_line && length > FUNCTION_LINES_MAX {
            let next_item = lines[start + 1..].iter().position(|line| {
                let code = line.trim_start();
                code.starts_with("fn ") || code.contains(" fn ")
            });
            // A declaration without a body ends before the next function begins.
            if next_item.is_none_or(|next| next + 1 >= length) {
                found.push(format!("{path}:{} has {length} lines", start + 1));
            }
        }
    }
    found
}

#[test]
fn no_module_has_a_name_that_admits_anything() -> Result<()> {
    for path in files(&["rs"])?.keys() {
        let parts = path.trim_end_matches(".rs").split('/');
        let bad: Vec<_> = parts.filter(|part| BANNED.contains(part)).collect();
        assert!(bad.is_empty(), "{path}");
    }
    Ok(())
}

#[test]
fn relative_links_lead_somewhere() -> Result<()> {
    let root = root()?;
    for (path, text) in files(&["md"])? {
        let directory = root.join(&path);
        let directory = directory.parent().context("a directory")?;
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            let is_elsewhere = target.contains("://") || target.starts_with("mailto:");
            if is_elsewhere || file.is_empty() {
                continue;
            }
            assert!(directory.join(file).exists(), "{path} links to {target}");
        }
    }
    Ok(())
}

#[test]
fn every_failpoint_is_listed_and_every_listed_one_is_there() -> Result<()> {
    let mut found = BTreeSet::new();
    for (path, text) in files(&["rs"])? {
        if !path.starts_with("crates/pillarbox-relay/src/") || is_test(&path) {
            continue;
        }
        for rest in text.split("step!(\"").skip(1) {
            found.extend(rest.split('"').next().map(str::to_owned));
        }
    }
    let listed = || STEPS.iter().chain(&RECOVERY_STEPS).chain(&INTAKE_STEPS);
    let names: BTreeSet<String> = listed().map(|step| (*step).to_owned()).collect();
    assert_eq!(found, names);
    assert_eq!(names.len(), listed().count(), "a step is listed twice");
    Ok(())
}
