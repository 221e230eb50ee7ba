//! `grant`, `publish`.

use anyhow::Result;
use pillarbox_testkit::servers::PgVersion;

use crate::program::{Program, connect, database, unique};

#[tokio::test]
async fn publish_takes_arguments_and_standard_input() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V18] {
        let (_postgres, program, url) = database(version).await?;
        program.done(&["migrate"]).await?;
        let printed = program
            .done(&["publish", "user_created", "{\"name\": \"Ada\"}"])
            .await?;
        let first: uuid::Uuid = printed.trim().parse()?;
        let options = [
            "publish",
            "login",
            "-",
            "--environment",
            "staging",
            "--metadata-version",
            "3",
            "--json",
        ];
        let ran = program.run_with_input(&options, " [1,  2]\n").await?;
        let second: serde_json::Value = serde_json::from_str(&ran.out)?;
        let query =
            "select event_id::text, event_type, environment, event_context::text, metadata_version
                     from pillarbox.event order by id";
        let rows = connect(&url).await?.query(query, &[]).await?;
        assert_eq!(rows[0].get::<_, String>(0), first.to_string());
        assert_eq!(rows[0].get::<_, &str>(2), "production");
        assert_eq!(rows[0].get::<_, &str>(3), "{\"name\": \"Ada\"}");
        assert_eq!(
            rows[1].get::<_, &str>(0),
            second["event_id"].as_str().unwrap_or_default()
        );
        assert_eq!(rows[1].get::<_, &str>(2), "staging");
        assert_eq!(
            rows[1].get::<_, &str>(3),
            " [1,  2]\n",
            "INV-12: byte for byte"
        );
        assert_eq!(rows[1].get::<_, i64>(4), 3);
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_event_has_one_clear_error() -> Result<()> {
    let (_postgres, program, _url) = database(PgVersion::V15).await?;
    let text = program.refusal(3, &["publish", "x", "{}"]).await?;
    assert!(text.contains("pillarbox migrate"), "{text}");
    program.done(&["migrate"]).await?;
    let long = "x".repeat(256);
    let cases = [
        (
            vec!["x", "{"],
            "the context is not json: EOF while parsing an object at line 1 column 1",
        ),
        (vec!["x", ""], "the context is not json"),
        (
            vec!["", "{}"],
            "event_type has 0 characters; give it 1 to 255",
        ),
        (vec![&long, "{}"], "event_type has 256 characters"),
        (
            vec!["x", "{}", "--metadata-version=-1"],
            "metadata_version is -1; it must not be negative",
        ),
    ];
    for (arguments, wanted) in cases {
        let command = [&["publish"], arguments.as_slice()].concat();
        let text = program.refusal(2, &command).await?;
        assert!(text.contains(wanted), "{text:?} does not hold {wanted:?}");
    }
    Ok(())
}

#[tokio::test]
async fn grant_gives_each_role_its_part_whatever_the_name() -> Result<()> {
    for version in [PgVersion::V15, PgVersion::V18] {
        let (postgres, program, url) = database(version).await?;
        program.done(&["migrate"]).await?;
        let name = url.rsplit('/').next().unwrap_or_default().to_owned();
        let odd = format!("{}; drop \"table\" 'x'", unique("Odd"));
        postgres
            .execute(&format!(
                "create role \"{}\" login",
                odd.replace('"', "\"\"")
            ))
            .await?;
        let user = Program::on(&postgres.url_for(&name, &odd, None)?)?;
        let text = user.refusal(3, &["publish", "x", "{}"]).await?;
        assert!(
            text.contains("permission denied for schema pillarbox"),
            "{text}"
        );

        let granted = program.json(&["grant", &odd, "--as", "publisher"]).await?;
        assert_eq!(granted["role"], "pillarbox_publisher");
        user.done(&["publish", "x", "{}"]).await?;
        let text = user.refusal(3, &["status"]).await?;
        assert!(text.contains("permission denied"), "{text}");

        program.done(&["grant", &odd, "--as", "reader"]).await?;
        let status = user.json(&["status"]).await?;
        assert_eq!(status["sinks"].as_array().map(Vec::len), Some(0));
        // Twice is no error.
        program.done(&["grant", &odd, "--as", "relay"]).await?;
        program.done(&["grant", &odd, "--as", "relay"]).await?;

        let text = program
            .refusal(3, &["grant", "no \" body", "--as", "reader"])
            .await?;
        assert!(
            text.contains("create role \"no \"\" body\" login"),
            "{text}"
        );
        let text = user.refusal(3, &["grant", &odd, "--as", "relay"]).await;
        // A member without ADMIN OPTION may not pass a role on.
        assert!(text.is_ok(), "{text:?}");
    }
    Ok(())
}
