//! Columns that are computed while events are read, and values that do not leave.

use anyhow::{Result, ensure};
use pillarbox_testkit::servers::{Flavour, eventually};
use uuid::Uuid;

use crate::scene::{PATIENCE, Scene, TABLE};

async fn publish(scene: &Scene, context: &str) -> Result<Uuid> {
    let event_id = Uuid::now_v7();
    let insert = format!(
        "insert into pillarbox.event (event_id, event_type, event_context)
         values ('{event_id}', 'trial', '{}')",
        context.replace('\'', "''")
    );
    scene.postgres.execute(&insert).await?;
    Ok(event_id)
}

/// One value of an event's row in ClickHouse; `None` when it has none or is not there.
async fn shown(scene: &Scene, event_id: Uuid, value: &str) -> Result<Option<String>> {
    let query =
        format!("select {value} from {TABLE} where event_id = '{event_id}' format TabSeparatedRaw");
    let answer = scene.clickhouse.query(&query).await?;
    let mut lines = answer.lines().map(str::to_owned);
    let first = lines.next();
    ensure!(lines.next().is_none(), "{event_id} is there twice");
    Ok(first.filter(|shown| shown != "\\N" && shown != "ᴺᵁᴸᴸ"))
}

/// Why an event was set aside.
async fn dead(scene: &Scene, event_id: Uuid) -> Result<Option<(String, String)>> {
    let sql = format!(
        "select column_name, reason from pillarbox.dead_letter where event_id = '{event_id}'"
    );
    let rows = scene.postgres.query(&sql, &[]).await?;
    Ok(rows.first().map(|row| (row.get(0), row.get(1))))
}

async fn promoted_and_failing(flavour: Flavour) -> Result<()> {
    const EXPRESSIONS: &str = r#"{
        "tenant_id": "event_context ->> 'tenant_id' -- a comment",
        "amount": "(event_context ->> 'amount')::integer",
        "event_type": "'app.' || event_type"
    }"#;
    let scene = Scene::start(flavour).await?;
    for column in ["tenant_id Nullable(String)", "amount Nullable(Int32)"] {
        let add = format!("alter table {TABLE} add column {column}");
        scene.clickhouse.query(&add).await?;
    }
    let mut good = Vec::new();
    let mut bad = Vec::new();
    // First, in the middle, several in a row, last; across the ends of batches.
    for nth in 0..130 {
        let is_bad = [0, 39, 40, 41, 77, 129].contains(&nth);
        let amount = if is_bad { "many" } else { "42" };
        let context = format!(r#"{{"tenant_id":"t{nth}","amount":"{amount}"}}"#);
        let event_id = publish(&scene, &context).await?;
        if is_bad { &mut bad } else { &mut good }.push((nth, event_id));
    }
    let absent = publish(&scene, "[]").await?;
    scene.drain_with(&[("EXPRESSIONS", EXPRESSIONS)]).await?;
    for (nth, event_id) in good {
        let values = "concat(event_type, ' ', assumeNotNull(tenant_id), ' ', toString(assumeNotNull(amount)))";
        let expected = Some(format!("app.trial t{nth} 42"));
        assert_eq!(shown(&scene, event_id, values).await?, expected);
    }
    assert_eq!(shown(&scene, absent, "tenant_id").await?, None);
    assert_eq!(scene.count().await?, 125);
    let why = "its expression fails with SQLSTATE 22P02";
    for (nth, event_id) in bad {
        let expected = Some(("amount".to_owned(), why.to_owned()));
        assert_eq!(dead(&scene, event_id).await?, expected, "{nth}");
    }
    // With another expression they can be delivered after all.
    let mended = EXPRESSIONS.replace("(event_context ->> 'amount')::integer", "0");
    scene
        .postgres
        .execute("update pillarbox.dead_letter set state = 'requested'")
        .await?;
    scene.drain_with(&[("EXPRESSIONS", &mended)]).await?;
    assert_eq!(scene.count().await?, 131);
    Ok(())
}

#[tokio::test]
async fn inv_9_expressions_that_fail_are_set_aside_before_clickhouse_18() -> Result<()> {
    promoted_and_failing(Flavour::V18).await
}

#[tokio::test]
async fn inv_9_expressions_that_fail_are_set_aside_before_clickhouse_26() -> Result<()> {
    promoted_and_failing(Flavour::V26).await
}

/// A table of users, to whom events refer, and the column that is read there.
async fn users(scene: &Scene) -> Result<()> {
    let create = "create table public.users (id bigint primary key, name text);
                  grant select on public.users to pillarbox_relay";
    scene.postgres.execute(create).await?;
    let add = format!("alter table {TABLE} add column user_name Nullable(String)");
    scene.clickhouse.query(&add).await?;
    Ok(())
}

async fn user(scene: &Scene, id: i64) -> Result<()> {
    let insert = format!("insert into public.users values ({id}, 'user {id}')");
    scene.postgres.execute(&insert).await
}

fn hydration(missing: &str) -> String {
    format!(
        r#"{{"user_name": {{
            "expression": "(select u.name from public.users u where u.id = (event_context ->> 'user_id')::bigint)",
            "volatile": true, "missing": "{missing}"
        }}}}"#
    )
}

async fn hydrated(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    users(&scene).await?;
    user(&scene, 1).await?;
    let known = publish(&scene, r#"{"user_id":1}"#).await?;
    let unknown = publish(&scene, r#"{"user_id":2}"#).await?;
    scene
        .drain_with(&[("EXPRESSIONS", &hydration("null"))])
        .await?;
    let name = Some("user 1".to_owned());
    assert_eq!(shown(&scene, known, "user_name").await?, name);
    assert_eq!(
        shown(&scene, unknown, "'there'").await?,
        Some("there".to_owned())
    );
    assert_eq!(shown(&scene, unknown, "user_name").await?, None);

    let known = publish(&scene, r#"{"user_id":1}"#).await?;
    let unknown = publish(&scene, r#"{"user_id":2}"#).await?;
    scene
        .drain_with(&[("EXPRESSIONS", &hydration("dead-letter"))])
        .await?;
    assert_eq!(shown(&scene, known, "user_name").await?, name);
    let why = Some((
        "user_name".to_owned(),
        "what it refers to is missing".to_owned(),
    ));
    assert_eq!(dead(&scene, unknown).await?, why);
    assert_eq!(shown(&scene, unknown, "'there'").await?, None);

    let relay = scene.running_with(&[("EXPRESSIONS", &hydration("wait"))])?;
    let first = publish(&scene, r#"{"user_id":1}"#).await?;
    let unknown = publish(&scene, r#"{"user_id":3}"#).await?;
    let last = publish(&scene, r#"{"user_id":1}"#).await?;
    relay.says("an event waits for a value").await?;
    eventually("what comes before it to arrive", PATIENCE, || async {
        shown(&scene, first, "user_name").await
    })
    .await?;
    let reported = "select stopped_reason from pillarbox.sink";
    eventually("people to see why", PATIENCE, || async {
        let rows = scene.postgres.query(reported, &[]).await?;
        let reason: Option<String> = rows[0].get(0);
        Ok(reason.filter(|reason| reason.contains("user_name")))
    })
    .await?;
    assert_eq!(shown(&scene, last, "'there'").await?, None);
    user(&scene, 3).await?;
    eventually("what waited to arrive", PATIENCE, || async {
        shown(&scene, last, "user_name").await
    })
    .await?;
    assert_eq!(
        shown(&scene, unknown, "user_name").await?,
        Some("user 3".to_owned())
    );
    relay.stop().await
}

#[tokio::test]
async fn a_missing_row_is_null_or_dead_or_waited_for_before_clickhouse_18() -> Result<()> {
    hydrated(Flavour::V18).await
}

#[tokio::test]
async fn a_missing_row_is_null_or_dead_or_waited_for_before_clickhouse_26() -> Result<()> {
    hydrated(Flavour::V26).await
}

/// A relay that waits for a value ends when it is told to.
#[tokio::test]
async fn inv_2_a_batch_that_was_sealed_waits_for_a_value_that_went_away() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    users(&scene).await?;
    user(&scene, 1).await?;
    let event_id = publish(&scene, r#"{"user_id":1}"#).await?;
    let expressions = hydration("wait");
    let expressions = [("EXPRESSIONS", expressions.as_str())];
    let mut killed = scene.relay("run", "before-send=return")?;
    killed.envs(expressions);
    scene.spawn(&mut killed)?.ended().await?;
    scene.postgres.execute("delete from public.users").await?;
    let relay = scene.running_with(&expressions)?;
    relay.says("an event waits for a value").await?;
    relay.stop().await?;
    user(&scene, 1).await?;
    scene.drain_with(&expressions).await?;
    let name = Some("user 1".to_owned());
    assert_eq!(shown(&scene, event_id, "user_name").await?, name);
    assert_eq!(scene.count().await?, 1);
    Ok(())
}

#[tokio::test]
async fn an_expression_that_cannot_be_is_refused_by_name() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    users(&scene).await?;
    for (expression, says) in [
        (r#""nothing""#, r#"column "nothing" does not exist"#),
        (r#""1), (2""#, "it is not one value"),
        (
            r#""(select name from public.users limit 1)""#,
            "it reads public.users",
        ),
        (r#""row(1, 2)""#, "which do not fit"),
    ] {
        let expressions = format!(r#"{{"user_name": {expression}}}"#);
        let mut relay = scene.relay("drain", "")?;
        relay.env("EXPRESSIONS", expressions);
        let output = tokio::time::timeout(PATIENCE, relay.output()).await??;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && log.contains(says),
            "{says}: {log}"
        );
        ensure!(log.contains("user_name"), "{log}");
    }
    Ok(())
}

async fn redacted(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let before = publish(&scene, r#"{"user":{"email":"old@example.org"}}"#).await?;
    scene.drain().await?;
    let kept = publish(&scene, r#" {"user" : 1.0,  "user":"\u0000"} "#).await?;
    let taken = publish(
        &scene,
        r#"{"a":[{"token":"secret1"}],"user":{"email":"secret2","email":"secret3"},"n":1e2}"#,
    )
    .await?;
    let redact = [("REDACT", "user.email,a.token")];
    scene.drain_with(&redact).await?;
    let context = "event_context";
    assert!(shown(&scene, before, context).await?.is_some());
    let expected = r#" {"user" : 1.0,  "user":"\u0000"} "#.to_owned();
    assert_eq!(shown(&scene, kept, context).await?, Some(expected));
    let expected = r#"{"a":[{"token":"[redacted]"}],"user":{"email":"[redacted]","email":"[redacted]"},"n":1e2}"#;
    assert_eq!(
        shown(&scene, taken, context).await?,
        Some(expected.to_owned())
    );
    // What cannot be searched does not leave.
    let unsearchable = publish(&scene, r#"{"\ud800":1}"#).await?;
    scene.drain_with(&redact).await?;
    let why = "it cannot be searched for what is to be redacted";
    let why = Some((context.to_owned(), why.to_owned()));
    assert_eq!(dead(&scene, unsearchable).await?, why);
    Ok(())
}

#[tokio::test]
async fn inv_12_redacted_values_do_not_leave_for_clickhouse_18() -> Result<()> {
    redacted(Flavour::V18).await
}

#[tokio::test]
async fn inv_12_redacted_values_do_not_leave_for_clickhouse_26() -> Result<()> {
    redacted(Flavour::V26).await
}

/// A batch that was sealed before is delivered as it was sealed, whatever came of its first attempt; the
/// next one without what is redacted.
#[tokio::test]
async fn inv_3_redaction_begins_between_two_attempts() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    for step in ["before-send", "block-answered"] {
        let context = format!(r#"{{"email":"{step}"}}"#);
        let sealed = publish(&scene, &context).await?;
        let mut killed = scene.spawn(&mut scene.relay("run", &format!("{step}=return"))?)?;
        killed.ended().await?;
        let next = publish(&scene, &context).await?;
        scene.drain_with(&[("REDACT", "email")]).await?;
        let arrived = shown(&scene, sealed, "event_context").await?;
        assert_eq!(arrived, Some(context));
        let arrived = shown(&scene, next, "event_context").await?;
        assert_eq!(arrived, Some(r#"{"email":"[redacted]"}"#.to_owned()));
    }
    assert_eq!(scene.count().await?, 4);
    Ok(())
}
