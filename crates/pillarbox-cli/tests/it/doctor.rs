//! `doctor` on real servers: something is broken, the doctor names it, its remedy is run as it is
//! printed, and the doctor has nothing to say about it any more.

mod clickhouse;
mod outbox;
mod server;
mod sinks;

use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use pillarbox_testkit::servers::{ClickHouse, Postgres, eventually};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::program::{DEADLINE, Program};

/// The program, the servers, and the URL of the superuser.
pub(crate) struct Clinic {
    pub(crate) postgres: Postgres,
    pub(crate) clickhouse: Option<ClickHouse>,
    pub(crate) program: Program,
    pub(crate) url: String,
}

impl Clinic {
    /// A durable server with the schema and no sink.
    pub(crate) async fn open(postgres: Postgres) -> Result<Self> {
        let url = postgres.url().to_owned();
        let program = Program::on(&url)?;
        program.done(&["migrate"]).await?;
        Ok(Self {
            postgres,
            clickhouse: None,
            program,
            url,
        })
    }

    /// The findings with these options, and the exit code.
    pub(crate) async fn look(&self, options: &[&str]) -> Result<(i32, Vec<Value>)> {
        let ran = self
            .program
            .run(&[&["doctor", "--json"], options].concat())
            .await?;
        let report: Value = serde_json::from_str(&ran.out).with_context(|| format!("{ran:?}"))?;
        let findings = report["findings"]
            .as_array()
            .context("no findings")?
            .clone();
        let problems = report["problems"].as_u64().context("no count")?;
        ensure!((problems > 0) == (ran.code != 0), "{ran:?}");
        Ok((ran.code, findings))
    }

    /// What is wrong about `check` of `area`.
    pub(crate) async fn wrong(
        &self,
        area: &str,
        check: &str,
        options: &[&str],
    ) -> Result<Vec<Value>> {
        let (_, findings) = self.look(options).await?;
        Ok(findings
            .into_iter()
            .filter(|finding| finding["area"] == area && finding["check"] == check)
            .filter(|finding| finding["level"] == "warning" || finding["level"] == "problem")
            .collect())
    }

    /// Nothing is wrong about it; `breaking` is run; exactly one thing is, with `says` in its message;
    /// after its remedy nothing is.
    pub(crate) async fn names_and_mends(&self, case: Case) -> Result<()> {
        let Case {
            area,
            check,
            level,
            says,
            breaking,
        } = case;
        let told = self.wrong(area, check, &[]).await?;
        ensure!(told.is_empty(), "{area} {check} was wrong before: {told:?}");
        psql(&self.url, breaking).await?;
        let told = eventually(breaking, DEADLINE, || async {
            let told = self.wrong(area, check, &[]).await?;
            Ok((!told.is_empty()).then_some(told))
        })
        .await?;
        let [finding] = told.as_slice() else {
            bail!("after {breaking}: {told:?}");
        };
        ensure!(finding["level"] == level, "{finding}");
        let message = finding["message"].as_str().unwrap_or_default();
        ensure!(message.contains(says), "{message:?} does not say {says:?}");
        self.heal(finding).await?;
        eventually("the finding to go", DEADLINE, || async {
            let told = self.wrong(area, check, &[]).await?;
            Ok(told.is_empty().then_some(()))
        })
        .await
        .with_context(|| format!("after the remedy of {finding}"))
    }

    /// Does what the remedy says.
    pub(crate) async fn heal(&self, finding: &Value) -> Result<()> {
        let what = finding["remedy"]["what"].as_str();
        let what = what.with_context(|| format!("no remedy: {finding}"))?;
        match finding["remedy"]["by"].as_str() {
            Some("psql") => psql(&self.url, what).await,
            Some("clickhouse") => {
                let clickhouse = self.clickhouse.as_ref().context("no clickhouse")?;
                clickhouse.query(what).await.map(drop)
            }
            Some("shell") => {
                let mut words = what.split_whitespace();
                ensure!(words.next() == Some("pillarbox"), "{what}");
                self.program
                    .done(&words.collect::<Vec<_>>())
                    .await
                    .map(drop)
            }
            _ => bail!("nobody can run the remedy of {finding}"),
        }
    }
}

/// Something to break.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) area: &'static str,
    pub(crate) check: &'static str,
    pub(crate) level: &'static str,
    pub(crate) says: &'static str,
    pub(crate) breaking: &'static str,
}

pub(crate) fn problem(
    area: &'static str,
    check: &'static str,
    says: &'static str,
    breaking: &'static str,
) -> Case {
    Case {
        area,
        check,
        level: "problem",
        says,
        breaking,
    }
}

pub(crate) fn warning(
    area: &'static str,
    check: &'static str,
    says: &'static str,
    breaking: &'static str,
) -> Case {
    Case {
        level: "warning",
        ..problem(area, check, says, breaking)
    }
}

/// Pastes statements into psql, as a person does.
pub(crate) async fn psql(url: &str, statements: &str) -> Result<()> {
    let mut command = Command::new("psql");
    command
        .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("psql")?;
    let mut stdin = child.stdin.take().context("standard input")?;
    stdin.write_all(statements.as_bytes()).await?;
    drop(stdin);
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{statements}: {errors}");
    Ok(())
}
