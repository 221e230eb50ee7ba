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
    let letter = rows.first().map(|row| {
        let column: Option<String> = row.get(0);
        (column.unwrap_or_default(), row.get(1))
    });
    Ok(letter)
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
        (r#""1), (2""#, "must return only one column"),
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

/// Rows of a function, or none, a type with a length, and a failing value at the head of another leaf than
/// the one that is read first.
#[tokio::test]
async fn inv_9_each_row_is_computed_by_itself_whatever_leaf_it_lies_in() -> Result<()> {
    const EXPRESSIONS: &str = r#"{
        "tag": "jsonb_array_elements_text((event_context -> 'tags')::jsonb)",
        "country": "coalesce(country, 'XX')",
        "amount": "(event_context ->> 'amount')::integer"
    }"#;
    let scene = Scene::start(Flavour::V26).await?;
    for column in ["tag", "country", "amount"] {
        let of = if column == "amount" {
            "Int32"
        } else {
            "String"
        };
        let add = format!("alter table {TABLE} add column {column} Nullable({of})");
        scene.clickhouse.query(&add).await?;
    }
    let add = "alter table pillarbox.event add column country char(2)";
    scene.postgres.execute(add).await?;
    let insert = async |slot: u32, context: &str| -> Result<Uuid> {
        let event_id = Uuid::now_v7();
        let insert = format!(
            "insert into pillarbox.event (slot, event_id, event_type, event_context, country)
             values ({slot}, '{event_id}', 'trial', '{context}', 'DE')"
        );
        scene.postgres.execute(&insert).await?;
        Ok(event_id)
    };
    // In order: the first of each leaf but one fails.
    let one = insert(0, r#"{"tags":["a"],"amount":"1"}"#).await?;
    let none = insert(0, r#"{"tags":[],"amount":"2"}"#).await?;
    let mut bad = Vec::new();
    for slot in 1..4 {
        bad.push(insert(slot, r#"{"amount":"many"}"#).await?);
        insert(slot, r#"{"amount":"3"}"#).await?;
    }
    let several = insert(2, r#"{"tags":["a","b"]}"#).await?;
    let last = insert(0, r#"{"amount":"4"}"#).await?;
    scene.drain_with(&[("EXPRESSIONS", EXPRESSIONS)]).await?;
    assert_eq!(shown(&scene, one, "tag").await?, Some("a".to_owned()));
    assert_eq!(shown(&scene, none, "tag").await?, None);
    assert_eq!(shown(&scene, none, "amount").await?, Some("2".to_owned()));
    assert_eq!(shown(&scene, last, "country").await?, Some("DE".to_owned()));
    assert_eq!(scene.count().await?, 6);
    for event_id in bad {
        ensure!(
            dead(&scene, event_id)
                .await?
                .is_some_and(|(column, _)| column == "amount")
        );
    }
    let (column, reason) = dead(&scene, several).await?.unwrap_or_default();
    ensure!(
        column == "tag" && reason.contains("21000"),
        "{column}: {reason}"
    );
    Ok(())
}

/// What somebody asks for again is not waited for, and a row of another partition is not set aside.
#[tokio::test]
async fn inv_2_and_9_what_is_delivered_again_holds_up_nobody() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    users(&scene).await?;
    user(&scene, 1).await?;
    scene
        .postgres
        .execute("update pillarbox.settings set retention = '1 hour'")
        .await?;
    let check =
        format!("alter table {TABLE} add constraint no_poison check event_type != 'poison'");
    scene.clickhouse.query(&check).await?;
    // Two months: two blocks; both refer to the user.
    let mut ids = Vec::new();
    for (month, kind) in [(10, "trial"), (11, "trial"), (11, "poison")] {
        let event_id = Uuid::now_v7();
        let insert = format!(
            "insert into pillarbox.event (event_id, event_type, event_context, event_date_time)
             values ('{event_id}', '{kind}', '{{\"user_id\":1}}', '2026-{month}-20 12:00Z')"
        );
        scene.postgres.execute(&insert).await?;
        ids.push(event_id);
    }
    let expressions = hydration("wait");
    let expressions = [("EXPRESSIONS", expressions.as_str())];
    scene.drain_with(&expressions).await?;
    assert_eq!(scene.count().await?, 2);
    ensure!(dead(&scene, ids[2]).await?.is_some());
    scene.postgres.execute("delete from public.users").await?;
    // A retry whose value is gone, beside a new event that has one.
    user(&scene, 2).await?;
    scene
        .postgres
        .execute("update pillarbox.dead_letter set state = 'requested'")
        .await?;
    let new = publish(&scene, r#"{"user_id":2}"#).await?;
    scene.drain_with(&expressions).await?;
    assert_eq!(
        shown(&scene, new, "user_name").await?,
        Some("user 2".to_owned())
    );
    let (_, reason) = dead(&scene, ids[2]).await?.unwrap_or_default();
    ensure!(reason.contains("missing"), "{reason}");
    // One partition of the batch again: the row of the other one, which lacks its value, too, is none of it.
    let october = "alter table events drop partition '202610'";
    scene.clickhouse.query(october).await?;
    let ask = "insert into pillarbox.replay (sink, kind, parent, only_partition)
               select sink, 'repair', min(number), '202610' from pillarbox.batch
               where kind = 'window' group by sink";
    scene.postgres.execute(ask).await?;
    user(&scene, 1).await?;
    let null = hydration("null");
    scene.drain_with(&[("EXPRESSIONS", null.as_str())]).await?;
    assert_eq!(
        shown(&scene, ids[0], "user_name").await?,
        Some("user 1".to_owned())
    );
    assert_eq!(scene.count().await?, 3);
    let rows = scene
        .postgres
        .query("select event_id from pillarbox.dead_letter", &[])
        .await?;
    assert_eq!(rows.len(), 1);
    Ok(())
}

/// Repairs of one partition, while the value of a row of another one is gone: that row is left alone.
#[tokio::test]
async fn inv_2_a_repair_leaves_rows_of_other_partitions_alone() -> Result<()> {
    let scene = Scene::start(Flavour::V26).await?;
    users(&scene).await?;
    user(&scene, 10).await?;
    user(&scene, 11).await?;
    scene
        .postgres
        .execute("update pillarbox.settings set retention = '1 hour'")
        .await?;
    let mut ids = Vec::new();
    for month in [10, 11] {
        let event_id = Uuid::now_v7();
        let insert = format!(
            "insert into pillarbox.event (event_id, event_type, event_context, event_date_time)
             values ('{event_id}', 'trial', '{{\"user_id\":{month}}}', '2026-{month}-20 12:00Z')"
        );
        scene.postgres.execute(&insert).await?;
        ids.push(event_id);
    }
    let expressions = hydration("dead-letter");
    let expressions = [("EXPRESSIONS", expressions.as_str())];
    scene.drain_with(&expressions).await?;
    assert_eq!(scene.count().await?, 2);
    scene
        .postgres
        .execute("delete from public.users where id = 11")
        .await?;
    let october = "alter table events drop partition '202610'";
    scene.clickhouse.query(october).await?;
    let ask = "insert into pillarbox.replay (sink, kind, parent, only_partition)
               select sink, 'repair', min(number), '202610' from pillarbox.batch
               where kind = 'window' group by sink";
    scene.postgres.execute(ask).await?;
    scene.drain_with(&expressions).await?;
    assert_eq!(
        shown(&scene, ids[0], "user_name").await?,
        Some("user 10".to_owned())
    );
    assert_eq!(
        shown(&scene, ids[1], "user_name").await?,
        Some("user 11".to_owned())
    );
    assert_eq!(dead(&scene, ids[1]).await?, None);
    Ok(())
}
