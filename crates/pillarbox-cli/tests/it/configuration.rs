//! `init`, the configuration file, help.

use std::path::Path;

use anyhow::Result;
use pillarbox_relay::config::{Config, Intake, listen};

use crate::program::Program;

#[tokio::test]
async fn init_writes_a_file_that_changes_nothing_and_names_every_key() -> Result<()> {
    let program = Program::bare()?;
    let ran = program.run(&["init"]).await?;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("next: "), "{ran:?}");
    let path = program.dir.path().join("pillarbox.toml");
    let text = std::fs::read_to_string(&path)?;

    let as_written = Config::load(Some(&path), [])?;
    // Lines that hold a key, without their "# ".
    let is_key = |line: &str| {
        let rest = line.strip_prefix("# ");
        rest.is_some_and(|rest| {
            rest.starts_with("[intake.")
                || rest
                    .split_once(" = ")
                    .is_some_and(|(key, _)| !key.contains(' '))
        })
    };
    let bare = |line: &str| {
        if is_key(line) {
            line[2..].to_owned()
        } else {
            line.to_owned()
        }
    };
    let uncommented: Vec<String> = text.lines().map(bare).collect();
    std::fs::write(&path, uncommented.join("\n"))?;
    let spelled_out = Config::load(Some(&path), [])?;

    let relay = |config: &Config| format!("{:?} {:?}", config.relay, config.log);
    assert_eq!(
        relay(&as_written),
        relay(&Config::default()),
        "the file changes something"
    );
    assert_eq!(
        relay(&spelled_out),
        relay(&Config::default()),
        "a comment lies"
    );
    let sink = &spelled_out.sinks["clickhouse"];
    let plain = &as_written.sinks["clickhouse"];
    let facts = |sink: &pillarbox_relay::config::Sink| {
        format!(
            "{:?}",
            (
                sink.kind,
                &sink.table,
                sink.compression,
                sink.guarantee,
                sink.insert_timeout
            )
        )
    };
    assert_eq!(facts(sink), facts(plain));
    assert!(plain.url.is_empty() && !sink.url.is_empty());
    let console = spelled_out.console.listen.map(|listen| listen.to_string());
    assert_eq!(console.as_deref(), Some(listen::CONSOLE));
    assert_eq!(as_written.console.listen, None);
    let facts = |intake: &Intake| {
        format!(
            "{:?}",
            (
                intake.max_rows,
                intake.max_bytes,
                intake.max_age,
                intake.remember
            )
        )
    };
    assert!(as_written.intake.is_empty());
    assert_eq!(
        facts(&spelled_out.intake["logins"]),
        facts(&Intake::default())
    );
    for key in pillarbox_relay::config::keys() {
        assert!(
            text.contains(&format!("# {key} = ")) || text.contains(&format!("# {key}.")),
            "the file does not show {key}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn init_overwrites_only_by_force() -> Result<()> {
    let program = Program::bare()?.file("[relay]\nmax_rows = 7\n")?;
    let text = program.refusal(3, &["init"]).await?;
    assert!(text.contains("--force"), "{text}");
    program.done(&["init", "--force"]).await?;
    let path = program.dir.path().join("pillarbox.toml");
    assert!(std::fs::read_to_string(&path)?.contains("# max_rows = 500000"));
    program.done(&["init", "--config", "other.toml"]).await?;
    assert!(program.dir.path().join("other.toml").exists());
    program
        .refusal(1, &["init", "--config", "missing/other.toml"])
        .await?;
    Ok(())
}

#[tokio::test]
async fn the_configuration_is_refused_before_anything_connects() -> Result<()> {
    let cases = [
        (
            "[relay]\nmax_row = 5",
            "unknown key relay.max_row in pillarbox.toml; did you mean max_rows?",
        ),
        (
            "[relay]\nmax_rows = 0",
            "relay.max_rows is 0; give it 1 to 1000000",
        ),
        ("[relay]\nmax_rows = 5 5", "pillarbox.toml, line 2: "),
        (
            "[postgres]\nurl = 'mysql://u:hunter2@h/d'",
            "postgres.url cannot be read; write postgresql://",
        ),
        ("", "no postgresql url is configured; set DATABASE_URL"),
    ];
    for (file, wanted) in cases {
        let program = Program::bare()?.file(file)?;
        let text = program.refusal(2, &["status"]).await?;
        assert!(
            text.starts_with(wanted),
            "{text:?} does not start with {wanted:?}"
        );
    }
    let text = Program::bare()?
        .refusal(2, &["status", "--config", "missing.toml"])
        .await?;
    assert!(
        text.starts_with("the configuration file missing.toml cannot be read: "),
        "{text}"
    );
    let named = Program::bare()?.with("PILLARBOX_CONFIG", "missing.toml");
    let text = named.refusal(2, &["status"]).await?;
    assert!(text.contains("missing.toml"), "{text}");
    Ok(())
}

#[tokio::test]
async fn help_teaches_with_examples_and_usage_errors_end_with_2() -> Result<()> {
    let program = Program::bare()?;
    let help = program.done(&["--help"]).await?;
    for wanted in [
        "First steps:",
        "Exit codes:",
        "pillarbox migrate",
        "sink create",
    ] {
        assert!(help.contains(wanted), "{help}");
    }
    let commands = [
        vec!["init"],
        vec!["migrate"],
        vec!["settings"],
        vec!["grant"],
        vec!["sink", "create"],
        vec!["sink", "check"],
        vec!["sink", "retire"],
        vec!["relay"],
        vec!["status"],
        vec!["events"],
        vec!["publish"],
        vec!["bench"],
        vec!["uninstall"],
    ];
    let reference =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md"))?;
    for command in commands {
        let help = program
            .done(&[command.as_slice(), &["--help"]].concat())
            .await?;
        let example = format!("pillarbox {}", command.join(" "));
        assert!(
            help.contains("Examples:") && help.contains(&example),
            "{help}"
        );
        assert!(
            reference.contains(&format!("`{example}")),
            "docs/cli.md lacks {example}"
        );
    }
    for wrong in [
        vec!["frobnicate"],
        vec!["grant", "app"],
        vec!["grant", "app", "--as", "king"],
        vec![],
    ] {
        let ran = program.run(&wrong).await?;
        assert_eq!(ran.code, 2, "{ran:?}");
    }
    program.done(&["--version"]).await?;
    Ok(())
}
