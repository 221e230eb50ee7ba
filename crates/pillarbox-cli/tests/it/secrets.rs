//! No password is ever printed: not by help, not in errors, not with every log line on.

use anyhow::Result;
use pillarbox_testkit::servers::{ClickHouse, Flavour, Postgres};

use crate::program::{Program, unique};

const SECRET: &str = "hunter2-do-not-print";

#[tokio::test]
async fn no_command_prints_a_secret_even_with_every_log_line() -> Result<()> {
    let postgres = Postgres::builder()
        .password_method("scram-sha-256")
        .start()
        .await?;
    let user = unique("app");
    let sql = format!("create role {user} superuser login password '{SECRET}'");
    postgres.execute(&sql).await?;
    let clickhouse = ClickHouse::start(Flavour::V26).await?;
    let clickhouse_url = clickhouse
        .url()
        .replace("http://", &format!("http://default:{SECRET}@"));
    let good = Program::bare()?.with(
        "DATABASE_URL",
        &postgres.url_for("postgres", &user, Some(SECRET))?,
    );
    let away = Program::bare()?.with(
        "DATABASE_URL",
        &format!("postgresql://{user}:{SECRET}@127.0.0.1:1/postgres"),
    );
    let garbled =
        Program::bare()?.with("DATABASE_URL", &format!("postgresql://u:pa?{SECRET}=x@h/d"));
    let file = Program::bare()?.file(&format!(
        "[sinks.clickhouse]\npassword = '{SECRET}'\nurl = 'http://127.0.0.1:1'\n[postgres]\nurl = {SECRET}\n"
    ))?;
    let commands: [&[&str]; 15] = [
        &["--help"],
        &["relay", "--help"],
        &["init"],
        &["migrate"],
        &["settings"],
        &["grant", "nobody", "--as", "relay"],
        &["publish", "x", "{}"],
        &["status"],
        &["sink", "create"],
        &["sink", "check", "--json"],
        &["relay", "--once"],
        &["relay"],
        &["events"],
        &["bench", "--clean"],
        &["uninstall", "--yes"],
    ];
    for program in [good, away, garbled, file] {
        let program = program
            .with("CLICKHOUSE_URL", &clickhouse_url)
            .with("RUST_LOG", "trace")
            .with("RUST_BACKTRACE", "1");
        for command in commands {
            if command == ["relay"] && program.json(&["settings"]).await.is_ok() {
                continue;
            }
            let ended =
                tokio::time::timeout(std::time::Duration::from_secs(5), program.run(command));
            // A relay waits for a server that is away; what it logs meanwhile is the same.
            let Ok(ran) = ended.await else { continue };
            let ran = ran?;
            for text in [&ran.out, &ran.err] {
                assert!(
                    !text.contains(SECRET),
                    "{command:?} prints the secret: {text}"
                );
            }
        }
    }
    Ok(())
}
