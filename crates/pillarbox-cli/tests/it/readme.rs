//! What README.md and docs/ show works as it stands there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, Postgres, eventually};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::process::Command;

use crate::program::{DEADLINE, Program};

/// What stands before the block of the five minutes.
const MARK: &str = "<!-- five minutes:";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The first ```sh block after `mark`, as it stands.
fn block_after(text: &str, mark: &str) -> Result<String> {
    let rest = text.split_once(mark).context("the mark is gone")?.1;
    let rest = rest
        .split_once("-->\n```sh\n")
        .context("no block follows")?;
    ensure!(!rest.0.contains('\n'), "something stands before the block");
    let block = rest.1.split_once("\n```").context("it has no end")?.0;
    Ok(block.to_owned())
}

/// The relay that the block starts in the background; ended when this is dropped.
struct Background(PathBuf);

impl Background {
    fn pid(&self) -> Result<Pid> {
        let text = fs::read_to_string(&self.0).context("the block started no relay")?;
        Pid::from_raw(text.trim().parse()?).context("a pid")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(pid) = self.pid() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// DESIGN 6 and 7: a newcomer's five minutes, exactly the lines of the README.
#[tokio::test]
async fn the_five_minutes_of_the_readme() -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let block = block_after(&readme, MARK)?;
    ensure!(block.contains("pillarbox relay &"), "{block}");
    let postgres = Postgres::start(PgVersion::V15).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let (dir, tools) = (TempDir::new()?, TempDir::new()?);
    fs::create_dir(tools.path().join("dist"))?;
    let program = tools.path().join("dist/pillarbox");
    symlink(env!("CARGO_BIN_EXE_pillarbox"), program)?;
    // As its export lines do, with the program that `make dist` would have put into dist/.
    let path = format!(
        "{}/dist:{}",
        tools.path().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let command = |lines: &str| -> Result<Command> {
        let mut command = Command::new("bash");
        command.args(["-eu", "-c", lines]).current_dir(dir.path());
        command
            .env_clear()
            .env("HOME", tools.path())
            .env("PATH", &path)
            .env("DATABASE_URL", postgres.url())
            .env("CLICKHOUSE_URL", clickhouse.url_with_credentials()?)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    };
    // Files, not pipes: the relay keeps them open after the shell has ended.
    let [out, err, pid] = ["out", "err", "pid"].map(|name| tools.path().join(name));
    let relay = Background(pid.clone());
    let lines = format!(
        "trap 'echo \"${{!:-}}\" > {}' EXIT\n{block}\n",
        pid.display()
    );
    let ran = command(&lines)?
        .stdout(fs::File::create(&out)?)
        .stderr(fs::File::create(&err)?)
        .status();
    let status = tokio::time::timeout(DEADLINE, ran).await??;
    let (said, log) = (fs::read_to_string(&out)?, fs::read_to_string(&err)?);
    ensure!(status.success(), "{status}\n{said}\n{log}");
    let line = block
        .lines()
        .find(|line| line.starts_with("pillarbox events"))
        .context("it shows no event")?;
    // The block sleeps for as long as it takes on a machine that is not busy.
    eventually("the event to be shown", DEADLINE, || async {
        let shown = command(line)?.output().await?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        Ok(shown.contains("ada@example.org").then_some(()))
    })
    .await
    .with_context(|| fs::read_to_string(&err).unwrap_or_default())?;
    let count = clickhouse.query("select count() from events").await?;
    assert_eq!(count.trim(), "1", "{said}");
    ended_without_errors(&relay, &err).await
}

async fn ended_without_errors(relay: &Background, err: &Path) -> Result<()> {
    let pid = relay.pid()?;
    kill_process(pid, Signal::TERM)?;
    eventually("the relay to end", DEADLINE, || async {
        Ok(test_kill_process(pid).is_err().then_some(()))
    })
    .await?;
    let log = fs::read_to_string(err)?;
    ensure!(log.contains("relay stopped"), "{log}");
    // Another relay of this machine may have the console's port.
    let mut lines = log
        .lines()
        .filter(|line| !line.contains("without a console"));
    let bad = ["ERROR", "WARN", "error:", "panicked"];
    ensure!(
        !lines.any(|line| bad.iter().any(|word| line.contains(word))),
        "{log}"
    );
    Ok(())
}

/// Code of a page: fenced blocks of shell, and spans in its text where `spans` says so.
fn code(page: &str, spans: bool) -> Vec<String> {
    let mut found = Vec::new();
    for (nth, part) in page.split("```").enumerate() {
        let is_block = nth % 2 == 1;
        if is_block {
            let shell = part.strip_prefix("sh\n");
            found.extend(shell.into_iter().flat_map(str::lines).map(str::to_owned));
        } else if spans {
            let inline = part.split('`').enumerate();
            found.extend(
                inline
                    .filter(|(at, _)| at % 2 == 1)
                    .map(|(_, text)| text.to_owned()),
            );
        }
    }
    found
}

/// The commands of a line of shell that run the program: their words.
fn commands(line: &str) -> Vec<Vec<String>> {
    let line = line.split(" #").next().unwrap_or_default();
    let parts = line.split(['|', ';', '&']);
    let words = parts.map(|part| part.split_whitespace().map(str::to_owned).collect());
    let own = |words: &Vec<String>| words.first().is_some_and(|word| word == "pillarbox");
    words.filter(own).collect()
}

/// The help of each command that was asked for.
#[derive(Default)]
struct Help(BTreeMap<Vec<String>, String>);

impl Help {
    async fn of(&mut self, program: &Program, command: &[String]) -> Result<String> {
        if !self.0.contains_key(command) {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            let help = program
                .done(&[words.as_slice(), &["--help"]].concat())
                .await?;
            self.0.insert(command.to_vec(), help);
        }
        self.0.get(command).cloned().context("no help")
    }
}

/// Checks that the program knows a command and its options.
async fn is_known(program: &Program, help: &mut Help, words: &[String]) -> Result<()> {
    let is_word = |word: &&String| word.chars().all(|c| c.is_ascii_lowercase());
    let listed = |help: &str, word: &str| {
        let mut lines = help.lines().map(str::trim_start);
        lines.any(|line| line.split([' ', ',', '=']).any(|part| part == word))
    };
    let mut command: Vec<String> = Vec::new();
    for word in words.iter().skip(1).take_while(is_word).take(2) {
        let known = help.of(program, &command).await?;
        if !known.contains("Commands:") {
            break;
        }
        ensure!(listed(&known, word), "{words:?}: {word} is not a command");
        command.push(word.clone());
    }
    let known = help.of(program, &command).await?;
    for option in words.iter().filter(|word| word.starts_with('-')) {
        let name = option.split('=').next().unwrap_or(option);
        let of_value = name == "-";
        ensure!(
            of_value || listed(&known, name),
            "{words:?}: no option {name}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn every_command_in_the_pages_is_known_to_help() -> Result<()> {
    let program = Program::bare()?;
    let mut help = Help::default();
    let mut seen = 0;
    let mut pages = vec![(root().join("README.md"), true)];
    for page in fs::read_dir(root().join("docs"))? {
        let path = page?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            // Other pages name commands of releases to come.
            let spans = path.ends_with("cli.md");
            pages.push((path, spans));
        }
    }
    for (path, spans) in pages {
        let page = fs::read_to_string(&path)?;
        for words in code(&page, spans).iter().flat_map(|line| commands(line)) {
            let known = is_known(&program, &mut help, &words).await;
            known.with_context(|| path.display().to_string())?;
            seen += 1;
        }
    }
    ensure!(seen > 20, "only {seen} commands were found");
    // The check itself knows what is unknown.
    for wrong in [
        "pillarbox frobnicate",
        "pillarbox relay --twice",
        "pillarbox sink drop",
    ] {
        let words = commands(wrong).concat();
        let known = is_known(&program, &mut help, &words).await;
        ensure!(known.is_err(), "{wrong} passes");
    }
    Ok(())
}
