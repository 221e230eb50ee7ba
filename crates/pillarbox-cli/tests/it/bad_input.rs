//! Bad input and servers that are not as they must be, met by the program itself: one clear error
//! with its remedy, an exit code for scripts, and after mending, the events that waited arrive.

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::servers::{ClickHouse, Flavour, PgVersion, Postgres, eventually};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio_postgres::error::SqlState;

use crate::program::{DEADLINE, Program, connect, database, finish, signal, unique};

/// A database with the schema, a sink that is registered, and one event that waits.
struct Waiting {
    /// Its server lives as long.
    postgres: Postgres,
    clickhouse: ClickHouse,
    program: Program,
    url: String,
}

impl Waiting {
    async fn start(flavour: Flavour) -> Result<Self> {
        let (postgres, program, url) = database(PgVersion::V15).await?;
        let clickhouse = ClickHouse::start(flavour).await?;
        let program = program
            .with_clickhouse(&clickhouse)?
            .with("PILLARBOX_RELAY__MAX_AGE", "20ms");
        program.done(&["migrate"]).await?;
        program.done(&["sink", "create"]).await?;
        program.done(&["publish", "waiting", "{}"]).await?;
        Ok(Self {
            postgres,
            clickhouse,
            program,
            url,
        })
    }

    /// The same sink under another URL.
    fn through(&self, clickhouse_url: &str) -> Result<Program> {
        Ok(Program::on(&self.url)?
            .with("CLICKHOUSE_URL", clickhouse_url)
            .with("PILLARBOX_SINKS__CLICKHOUSE__TABLE", &self.program.table))
    }

    /// The relay ends at its start, daemon or not, with this code and all these words.
    async fn refuses(&self, program: &Program, code: i32, words: &[&str]) -> Result<()> {
        for arguments in [vec!["relay", "--once"], vec!["relay"]] {
            let ran = program.run(&arguments).await?;
            let error = ran.err.lines().filter(|line| line.starts_with("error: "));
            let [error] = error.collect::<Vec<_>>()[..] else {
                anyhow::bail!("{arguments:?} does not end with one error: {ran:?}");
            };
            ensure!(ran.code == code, "{arguments:?} ended with {ran:?}");
            for word in words {
                ensure!(error.contains(word), "{word:?} is not in {error}");
            }
        }
        Ok(())
    }

    /// What waited was not lost.
    async fn is_mended(&self) -> Result<()> {
        let drained = self.program.json(&["relay", "--once"]).await?;
        ensure!(drained["rows"] == 1, "{drained}");
        let count = format!("select count() from {}", self.program.table);
        ensure!(self.clickhouse.query(&count).await?.trim() == "1");
        Ok(())
    }
}

#[tokio::test]
async fn a_wrong_password_of_clickhouse_ends_the_relay() -> Result<()> {
    for flavour in Flavour::ALL {
        let waiting = Waiting::start(flavour).await?;
        let url = waiting.clickhouse.url();
        let wrong = url.replace("http://", "http://default:hunter2@");
        let program = waiting.through(&wrong)?;
        let words = [
            "clickhouse",
            "password",
            "check the sink's user and password",
        ];
        waiting.refuses(&program, 2, &words).await?;
        waiting.is_mended().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_of_postgresql_ends_the_relay() -> Result<()> {
    let postgres = Postgres::builder()
        .password_method("scram-sha-256")
        .start()
        .await?;
    postgres
        .execute("create role mover login password 'open-sesame'")
        .await?;
    let program = Program::on(&postgres.url_for("postgres", "mover", Some("wrong"))?)?
        .with("CLICKHOUSE_URL", "http://127.0.0.1:1");
    for arguments in [vec!["relay"], vec!["relay", "--once"]] {
        let text = program.refusal(2, &arguments).await?;
        let wanted = "password authentication failed for user \"mover\"";
        ensure!(text.contains(wanted), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_table_that_is_missing_or_does_not_fit_ends_the_relay() -> Result<()> {
    for flavour in Flavour::ALL {
        let waiting = Waiting::start(flavour).await?;
        let (program, table) = (&waiting.program, &waiting.program.table);
        let query = async |sql: &str| {
            let sql = sql.replace("{table}", table);
            waiting.clickhouse.query(&sql).await
        };
        query("alter table {table} drop column event_context").await?;
        let words = [table.as_str(), "no column event_context"];
        waiting.refuses(program, 3, &words).await?;
        query("alter table {table} add column event_context String").await?;

        query("alter table {table} drop column metadata_version").await?;
        query("alter table {table} add column metadata_version String").await?;
        let words = [table.as_str(), "metadata_version", "bigint", "String"];
        waiting.refuses(program, 3, &words).await?;

        query("drop table {table}").await?;
        let words = [table.as_str(), "does not exist", "pillarbox sink create"];
        waiting.refuses(program, 3, &words).await?;
        program.done(&["sink", "create"]).await?;
        waiting.is_mended().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_window_of_0_ends_the_relay_with_the_statement_that_mends_it() -> Result<()> {
    let waiting = Waiting::start(Flavour::V26).await?;
    let table = &waiting.program.table;
    let alter = |rest: &str| format!("alter table {table} {rest}");
    let forget = "modify setting non_replicated_deduplication_window = 0";
    waiting.clickhouse.query(&alter(forget)).await?;
    // With the column batch one can look instead.
    waiting
        .clickhouse
        .query(&alter("drop column batch"))
        .await?;
    let remedy = format!(
        "ALTER TABLE `default`.`{table}` MODIFY SETTING non_replicated_deduplication_window = 10000"
    );
    let words = ["at-least-once", &remedy];
    waiting.refuses(&waiting.program, 3, &words).await?;
    waiting.clickhouse.query(&remedy).await?;
    waiting.is_mended().await
}

#[tokio::test]
async fn a_standby_and_a_foreign_encoding_end_the_relay() -> Result<()> {
    let waiting = Waiting::start(Flavour::V26).await?;
    let standby = Postgres::standby_of(&waiting.postgres).await?;
    standby.caught_up_with(&waiting.postgres).await?;
    let name = waiting.url.rsplit('/').next().unwrap_or_default();
    let url = standby.url_for(name, "postgres", None)?;
    let clickhouse = waiting.clickhouse.url_with_credentials()?;
    let program = Program::on(&url)?.with("CLICKHOUSE_URL", &clickhouse);
    let words = ["standby", "connect to the primary"];
    waiting.refuses(&program, 3, &words).await?;
    let latin = Postgres::builder().encoding("LATIN1").start().await?;
    let program = Program::on(latin.url())?.with("CLICKHOUSE_URL", &clickhouse);
    let words = ["encoding is LATIN1", "ENCODING 'UTF8'"];
    waiting.refuses(&program, 3, &words).await?;
    waiting.is_mended().await
}

/// Waits for a line of the relay's log.
async fn says(relay: &mut Child, text: &str) -> Result<()> {
    let stderr = relay.stderr.take().context("its log")?;
    let mut lines = BufReader::new(stderr).lines();
    let said = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(text) {
                return Ok(());
            }
        }
        anyhow::bail!("its log ended without {text:?}")
    };
    tokio::time::timeout(DEADLINE, said)
        .await
        .context(text.to_owned())??;
    // What follows is not looked at, but must not fill the pipe.
    relay.stderr = Some(lines.into_inner().into_inner());
    Ok(())
}

async fn delivers(waiting: &Waiting, relay: Child) -> Result<()> {
    let count = format!("select count() from {}", waiting.program.table);
    eventually("the event that waited", DEADLINE, || async {
        let count = waiting.clickhouse.query(&count).await;
        Ok(count.is_ok_and(|count| count.trim() == "1").then_some(()))
    })
    .await?;
    signal(&relay, Signal::TERM)?;
    let ended = finish(relay).await?;
    ensure!(ended.code == 0, "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_relay_waits_for_a_postgresql_that_is_away() -> Result<()> {
    let waiting = Waiting::start(Flavour::V26).await?;
    waiting.postgres.stop().await?;
    let text = waiting.program.refusal(4, &["relay", "--once"]).await?;
    ensure!(text.contains("does not answer; is it running"), "{text}");
    let mut relay = waiting.program.start(&["relay"])?;
    says(&mut relay, "waiting for postgresql").await?;
    waiting.postgres.restart().await?;
    delivers(&waiting, relay).await
}

#[tokio::test]
async fn a_relay_waits_for_a_clickhouse_that_is_away() -> Result<()> {
    for flavour in Flavour::ALL {
        let waiting = Waiting::start(flavour).await?;
        waiting.clickhouse.stop().await?;
        let mut relay = waiting.program.start(&["relay"])?;
        says(&mut relay, "the sink is not ready yet").await?;
        waiting.clickhouse.restart().await?;
        delivers(&waiting, relay).await?;
    }
    Ok(())
}

/// A drain bears with a sink for half a minute, then exits with 4: a scheduler tries again later.
#[tokio::test]
async fn a_drain_gives_up_on_a_clickhouse_that_is_away() -> Result<()> {
    let waiting = Waiting::start(Flavour::V26).await?;
    waiting.clickhouse.stop().await?;
    let ran = waiting.program.start(&["relay", "--once"])?;
    let ended = finish(ran).await?;
    ensure!(ended.code == 4, "{ended:?}");
    let errors: Vec<&str> = ended
        .err
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    ensure!(
        errors.len() == 1
            && ["127.0.0.1", "refused"]
                .iter()
                .all(|word| errors[0].contains(word)),
        "{ended:?}"
    );
    waiting.clickhouse.restart().await?;
    waiting.is_mended().await
}

/// INV-4, by SQL: a bad event fails its own statement with what is wrong, is not shown, and nothing
/// else is lost.
#[tokio::test]
async fn bad_events_fail_their_statement_and_nothing_else() -> Result<()> {
    for flavour in Flavour::ALL {
        let waiting = Waiting::start(flavour).await?;
        let client = connect(&waiting.url).await?;
        let secret = unique("secret");
        let large = format!("\"{secret}{}\"", "x".repeat(1024 * 1024));
        let long = "t".repeat(256);
        let cases = [
            (
                "bad",
                "{\"open\": ",
                SqlState::INVALID_TEXT_REPRESENTATION,
                "json",
            ),
            ("bad", "", SqlState::INVALID_TEXT_REPRESENTATION, "json"),
            (
                "",
                "{}",
                SqlState::CHECK_VIOLATION,
                "0 characters; give it 1 to 255",
            ),
            (
                &long,
                "{}",
                SqlState::CHECK_VIOLATION,
                "256 characters; give it 1 to 255",
            ),
            (
                "bad",
                &large,
                SqlState::CHECK_VIOLATION,
                "the limit is 1048576; publish less",
            ),
        ];
        for (event_type, context, code, wanted) in &cases {
            for statement in [
                "select pillarbox.publish($1, $2::text::json)",
                "insert into pillarbox.event (event_type, event_context) values ($1, $2::text::json)",
                "select pillarbox.publish_batch(array[$1], array[$2::text]::json[])",
            ] {
                let refused = client.execute(statement, &[event_type, context]).await;
                let error = refused
                    .err()
                    .with_context(|| format!("{statement} took it"))?;
                let answer = error.as_db_error().context("no answer")?;
                ensure!(answer.code() == code, "{statement}: {answer}");
                ensure!(answer.message().contains(wanted), "{statement}: {answer}");
                let shown = format!("{answer:?}");
                ensure!(!shown.contains(&secret), "the event is shown");
            }
        }
        let ran = waiting
            .program
            .run_with_input(&["publish", "bad", "-"], &large)
            .await?;
        ensure!(
            ran.code == 2 && ran.out.is_empty(),
            "{} {}",
            ran.code,
            ran.err
        );
        ensure!(
            ran.err.contains("pillarbox settings --event-bytes-max"),
            "{}",
            ran.err
        );
        waiting.is_mended().await?;
    }
    Ok(())
}
