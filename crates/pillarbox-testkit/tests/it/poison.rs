//! Rows that a real ClickHouse cannot take: found by splitting, set aside untouched, retried on request.

use anyhow::{Context as _, Result, ensure};
use pillarbox_testkit::oracle::{Oracle, Verdict};
use pillarbox_testkit::proof;
use pillarbox_testkit::servers::{Flavour, eventually};
use uuid::Uuid;

use crate::scene::{PATIENCE, SINK, Scene, TABLE};
use crate::traffic::{Event, Way, commit};

const NOON_US: i64 = 1_795_176_000_000_000;

/// Microseconds of a month, about.
const MONTH_US: i64 = 31 * 86_400_000_000;

/// One batch of up to this many rows.
const VARIABLES: [(&str, &str); 1] = [("MAX_ROWS", "100000")];

/// A table that refuses events of the type `poison`, as a constraint would, on both engines.
async fn scene(flavour: Flavour) -> Result<Scene> {
    let scene = Scene::start(flavour).await?;
    refuse_poison(&scene).await?;
    Ok(scene)
}

async fn refuse_poison(scene: &Scene) -> Result<()> {
    let sql = match scene.clickhouse.flavour() {
        Flavour::V26 => {
            format!("ALTER TABLE {TABLE} ADD CONSTRAINT no_poison CHECK event_type != 'poison'")
        }
        Flavour::V18 => format!(
            "ALTER TABLE {TABLE} ADD COLUMN refused UInt8 MATERIALIZED throwIf(event_type = 'poison')"
        ),
    };
    scene.clickhouse.query(&sql).await?;
    Ok(())
}

/// What was delivered stays in the outbox, so that it can be delivered again.
async fn retain(scene: &Scene) -> Result<()> {
    let retain = "update pillarbox.settings set retention = '1 hour'";
    scene.postgres.execute(retain).await
}

/// Asks for the batches of this kind once more.
async fn replay(scene: &Scene, kind: &str) -> Result<()> {
    let ask = format!(
        "insert into pillarbox.replay (sink, kind, parent)
         select sink, 'replay', number from pillarbox.batch where kind = '{kind}'"
    );
    scene.postgres.execute(&ask).await
}

async fn accept_poison(scene: &Scene) -> Result<()> {
    let sql = match scene.clickhouse.flavour() {
        Flavour::V26 => format!("ALTER TABLE {TABLE} DROP CONSTRAINT no_poison"),
        Flavour::V18 => format!("ALTER TABLE {TABLE} DROP COLUMN refused"),
    };
    scene.clickhouse.query(&sql).await?;
    Ok(())
}

/// An event whose context shows every byte that somebody could lose.
fn event(number: usize, is_poison: bool) -> Event {
    let kind = if is_poison { "poison" } else { "trial" };
    // Two months: two blocks.
    let time_us = NOON_US + MONTH_US * (number % 2) as i64 + number as i64;
    Event::at(time_us, kind, format!(" {{\"n\" : {number},  \"n\":1}} "))
}

async fn publish(
    scene: &Scene,
    oracle: &Oracle,
    count: usize,
    is_poison: impl Fn(usize) -> bool,
) -> Result<Vec<Uuid>> {
    let mut client = scene.postgres.connect().await?;
    let events: Vec<Event> = (0..count).map(|n| event(n, is_poison(n))).collect();
    commit(&mut client, oracle, Way::Batch, &events).await?;
    let poison = events.iter().filter(|event| event.event_type == "poison");
    Ok(poison.map(|event| event.event_id).collect())
}

async fn drained(scene: &Scene, oracle: &Oracle) -> Result<Verdict> {
    scene.drain_with(&VARIABLES).await?;
    let verdict = scene.verdict(oracle).await?;
    ensure!(verdict.holds(), "{verdict}\n{}", verdict.explain());
    Ok(verdict)
}

async fn poison_is_set_aside(flavour: Flavour) -> Result<()> {
    let count = 500;
    let places: [(&str, &[usize]); 4] = [
        ("first", &[0]),
        ("middle", &[251]),
        ("last", &[499]),
        ("some of both months", &[3, 4, 77, 320]),
    ];
    let scene = scene(flavour).await?;
    let oracle = Oracle::new();
    let mut dead = 0;
    for (place, numbers) in places {
        let is_poison = |n| numbers.contains(&n);
        let mut poison = publish(&scene, &oracle, count, is_poison).await?;
        let verdict = drained(&scene, &oracle).await.context(place)?;
        dead += poison.len() as u64;
        assert_eq!(verdict.dead, dead, "{place}");
        let mut found = scene.dead().await?;
        found.retain(|id| poison.contains(id));
        poison.sort();
        found.sort();
        assert_eq!(found, poison, "{place}");
    }
    // All of a small batch, and one alone.
    for count in [7, 1] {
        publish(&scene, &oracle, count, |_| true).await?;
        dead += count as u64;
        assert_eq!(drained(&scene, &oracle).await?.dead, dead);
    }
    let expected = match flavour {
        Flavour::V26 => 469,
        Flavour::V18 => 395,
    };
    let odd = scene
        .number(&format!(
            "select count(*) from pillarbox.dead_letter l
             join pillarbox.batch b on b.sink = l.sink and b.number = l.number
             where l.code <> {expected} or l.reason = '' or l.event_type <> 'poison'
                 or l.event_context::text not like ' {{\"n\" : %,  \"n\":1}} '"
        ))
        .await?;
    assert_eq!(odd, 0, "dead letters that are not as they should be");
    balances(&scene).await
}

/// published = pending + in flight + delivered + dead + dropped, and so many rows were published.
async fn balances(scene: &Scene) -> Result<()> {
    let row = scene
        .postgres
        .query("select * from pillarbox.accounting()", &[])
        .await?;
    let row = row.first().context("an account")?;
    let of = |name: &str| row.get::<_, i64>(name);
    let held = i64::try_from(scene.count().await?)?;
    let dead = i64::try_from(scene.dead().await?.len())?;
    assert_eq!((of("pending"), of("in_flight")), (0, 0), "{row:?}");
    assert_eq!((of("delivered"), of("dead") + of("dropped")), (held, dead));
    assert_eq!(of("published"), held + dead);
    Ok(())
}

#[tokio::test]
async fn inv_9_poison_is_set_aside_from_clickhouse_26() -> Result<()> {
    poison_is_set_aside(Flavour::V26).await
}

#[tokio::test]
async fn inv_9_poison_is_set_aside_from_clickhouse_18() -> Result<()> {
    poison_is_set_aside(Flavour::V18).await
}

/// What the encoder cannot represent is set aside with the seal of its batch.
async fn unrepresentable_is_set_aside(flavour: Flavour) -> Result<()> {
    const YEAR_US: i64 = 366 * 86_400_000_000;
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    let mut client = scene.postgres.connect().await?;
    let far = |nth: i64| Event::at(NOON_US + 600 * YEAR_US + nth, "far", "{}".to_owned());
    let mut events: Vec<Event> = (0..50).map(|n| event(n, false)).collect();
    events.insert(20, far(1));
    events.push(far(2));
    commit(&mut client, &oracle, Way::Batch, &events).await?;
    commit(&mut client, &oracle, Way::Batch, &[far(3)]).await?;
    let verdict = drained(&scene, &oracle).await?;
    assert_eq!((verdict.delivered, verdict.dead), (50, 3));
    let named = scene
        .number(
            "select count(*) from pillarbox.dead_letter l
             where l.column_name = 'event_date_time' and l.code is null and l.reason <> ''",
        )
        .await?;
    assert_eq!(named, 3);
    balances(&scene).await
}

#[tokio::test]
async fn inv_9_what_clickhouse_26_cannot_represent_is_set_aside() -> Result<()> {
    unrepresentable_is_set_aside(Flavour::V26).await
}

#[tokio::test]
async fn inv_9_what_clickhouse_18_cannot_represent_is_set_aside() -> Result<()> {
    unrepresentable_is_set_aside(Flavour::V18).await
}

/// A context with the escape of a NUL, which `json` keeps and PostgreSQL's functions cannot read: refused by
/// the server, and beyond what the encoder can represent.
async fn poison_with_a_nul_is_set_aside(flavour: Flavour) -> Result<()> {
    const YEAR_US: i64 = 366 * 86_400_000_000;
    let scene = scene(flavour).await?;
    let oracle = Oracle::new();
    let mut client = scene.postgres.connect().await?;
    let nul = || r#" {"nul" : "\u0000"} "#.to_owned();
    let refused = Event::at(NOON_US, "poison", nul());
    let far = Event::at(NOON_US + 600 * YEAR_US, "far", nul());
    let mut events: Vec<Event> = (0..20).map(|n| event(n, false)).collect();
    events.push(Event::at(NOON_US, "trial", nul()));
    events.extend([refused, far]);
    commit(&mut client, &oracle, Way::Insert, &events).await?;
    let verdict = drained(&scene, &oracle).await?;
    assert_eq!((verdict.delivered, verdict.dead), (21, 2));
    // A retry reads them from where they were set aside.
    accept_poison(&scene).await?;
    retry(&scene).await?;
    let verdict = drained(&scene, &oracle).await?;
    assert_eq!((verdict.delivered, verdict.dead), (22, 1));
    balances(&scene).await
}

#[tokio::test]
async fn inv_9_poison_with_a_nul_is_set_aside_from_clickhouse_26() -> Result<()> {
    poison_with_a_nul_is_set_aside(Flavour::V26).await
}

#[tokio::test]
async fn inv_9_poison_with_a_nul_is_set_aside_from_clickhouse_18() -> Result<()> {
    poison_with_a_nul_is_set_aside(Flavour::V18).await
}

/// An event that was retried in vain is not set aside a second time when its batch is delivered again.
async fn replayed_after_a_retry_in_vain(flavour: Flavour) -> Result<()> {
    let scene = scene(flavour).await?;
    let oracle = Oracle::new();
    retain(&scene).await?;
    publish(&scene, &oracle, 20, |n| n == 7).await?;
    assert_eq!(drained(&scene, &oracle).await?.dead, 1);
    retry(&scene).await?;
    let verdict = drained(&scene, &oracle).await?;
    assert_eq!((verdict.delivered, verdict.dead), (19, 1));
    replay(&scene, "window").await?;
    scene.drain_with(&VARIABLES).await?;
    let open = "select count(*) from pillarbox.replay where answered_at is null";
    assert_eq!(
        (scene.number(open).await?, scene.in_flight().await?),
        (0, 0)
    );
    assert_eq!((scene.dead().await?.len(), scene.count().await?), (1, 38));
    let account = "select count(*) from pillarbox.accounting()
                   where (published, delivered, dead) = (20, 19, 1)";
    assert_eq!(scene.number(account).await?, 1);
    Ok(())
}

#[tokio::test]
async fn inv_9_replayed_after_a_retry_in_vain_on_clickhouse_26() -> Result<()> {
    replayed_after_a_retry_in_vain(Flavour::V26).await
}

#[tokio::test]
async fn inv_9_replayed_after_a_retry_in_vain_on_clickhouse_18() -> Result<()> {
    replayed_after_a_retry_in_vain(Flavour::V18).await
}

/// What a retry delivered is delivered again on request, and refused now: it has arrived all the same.
async fn a_replay_of_a_retry_is_refused(flavour: Flavour) -> Result<()> {
    let scene = scene(flavour).await?;
    let oracle = Oracle::new();
    retain(&scene).await?;
    publish(&scene, &oracle, 20, |n| n == 7).await?;
    assert_eq!(drained(&scene, &oracle).await?.dead, 1);
    accept_poison(&scene).await?;
    retry(&scene).await?;
    assert_eq!(drained(&scene, &oracle).await?.delivered, 20);
    refuse_poison(&scene).await?;
    replay(&scene, "retry").await?;
    let verdict = drained(&scene, &oracle).await?;
    assert_eq!((verdict.delivered, verdict.dead), (20, 0));
    let refused = "select count(*) from pillarbox.replay r
                   join pillarbox.delivery d on d.sink = r.sink and d.number = r.number
                   where d.outcome = 'dead'";
    assert_eq!(scene.number(refused).await?, 1);
    accept_poison(&scene).await?;
    balances(&scene).await
}

#[tokio::test]
async fn inv_9_a_replay_of_a_retry_is_refused_by_clickhouse_26() -> Result<()> {
    a_replay_of_a_retry_is_refused(Flavour::V26).await
}

#[tokio::test]
async fn inv_9_a_replay_of_a_retry_is_refused_by_clickhouse_18() -> Result<()> {
    a_replay_of_a_retry_is_refused(Flavour::V18).await
}

/// A retry delivered one of two, and the other one was retried by another batch since: what the first
/// delivered can be delivered again.
#[tokio::test]
async fn inv_2_a_retry_is_replayed_whose_rest_was_retried_since() -> Result<()> {
    let scene = scene(Flavour::V26).await?;
    let oracle = Oracle::new();
    publish(&scene, &oracle, 20, |n| n == 7 || n == 9).await?;
    assert_eq!(drained(&scene, &oracle).await?.dead, 2);
    accept_poison(&scene).await?;
    let refuse = format!(
        "ALTER TABLE {TABLE} ADD CONSTRAINT no_nine CHECK position(event_context, '\"n\" : 9,') = 0"
    );
    scene.clickhouse.query(&refuse).await?;
    for _ in 0..2 {
        retry(&scene).await?;
        let verdict = drained(&scene, &oracle).await?;
        assert_eq!((verdict.delivered, verdict.dead), (19, 1));
    }
    let replay = "insert into pillarbox.replay (sink, kind, parent)
                  select sink, 'replay', min(number) from pillarbox.batch
                  where kind = 'retry' group by sink";
    scene.postgres.execute(replay).await?;
    scene.drain_with(&VARIABLES).await?;
    assert_eq!((scene.count().await?, scene.dead().await?.len()), (20, 1));
    Ok(())
}

async fn retry(scene: &Scene) -> Result<()> {
    let request = "update pillarbox.dead_letter set state = 'requested' where state = 'dead'";
    scene.postgres.execute(request).await
}

/// The sink has lost a batch, and of what is delivered again refuses an event that it took before: that
/// is a dead letter now, and nothing delivers it a second time but a retry. Until the repair has arrived, its
/// events are missing.
async fn a_repair_is_refused(flavour: Flavour) -> Result<()> {
    let scene = Scene::start(flavour).await?;
    let oracle = Oracle::new();
    retain(&scene).await?;
    publish(&scene, &oracle, 20, |n| n == 7).await?;
    assert_eq!(drained(&scene, &oracle).await?.delivered, 20);
    let lose = format!("TRUNCATE TABLE {TABLE}");
    scene.clickhouse.query(&lose).await?;
    refuse_poison(&scene).await?;
    let repair = "insert into pillarbox.replay (sink, kind, parent, only_partition)
                  select b.sink, 'repair', b.number, block ->> 'partition'
                  from pillarbox.batch b, jsonb_array_elements(b.blocks) block
                  where b.kind = 'window'";
    scene.postgres.execute(repair).await?;
    let mut killed = scene.relay("run", "before-send=return")?;
    killed.envs(VARIABLES);
    let mut killed = scene.spawn(&mut killed)?;
    ensure!(!killed.ended().await?.success(), "{}", killed.log_tail());
    let sealed = "select count(*) from pillarbox.batch where kind = 'repair'";
    ensure!(scene.number(sealed).await? > 0, "{}", killed.log_tail());
    let client = scene.postgres.connect().await?;
    let sink = scene.sink(TABLE)?;
    let proof = proof::prove(&client, &sink, SINK).await?;
    assert_eq!(proof.findings.len(), 2, "{proof:?}");

    let verdict = drained(&scene, &oracle).await?;
    assert_eq!((verdict.delivered, verdict.dead), (19, 1));
    let proof = proof::prove(&client, &sink, SINK).await?;
    assert_eq!((proof.rows, &*proof.findings), (19, &[][..]));
    balances(&scene).await?;
    accept_poison(&scene).await?;
    replay(&scene, "window").await?;
    scene.drain_with(&VARIABLES).await?;
    assert_eq!((scene.count().await?, scene.dead().await?.len()), (38, 1));
    retry(&scene).await?;
    scene.drain_with(&VARIABLES).await?;
    assert_eq!((scene.count().await?, scene.dead().await?.len()), (39, 0));
    let account = "select count(*) from pillarbox.accounting()
                   where (published, delivered, dead) = (20, 20, 0)";
    assert_eq!(scene.number(account).await?, 1);
    Ok(())
}

#[tokio::test]
async fn inv_9_and_13_a_repair_is_refused_by_clickhouse_26() -> Result<()> {
    a_repair_is_refused(Flavour::V26).await
}

#[tokio::test]
async fn inv_9_and_13_a_repair_is_refused_by_clickhouse_18() -> Result<()> {
    a_repair_is_refused(Flavour::V18).await
}

/// Ten thousand bad rows are not poison: the sink stops, nothing is set aside, and when the table is
/// mended everything arrives.
async fn many_are_drift(flavour: Flavour) -> Result<()> {
    let scene = scene(flavour).await?;
    let oracle = Oracle::new();
    let mut variables = VARIABLES.to_vec();
    variables.extend([("STOPPED_MS", "200"), ("POISON_ROWS", "15")]);
    let relay = scene.running_with(&variables)?;
    publish(&scene, &oracle, 10, |_| false).await?;
    relay.says("delivered").await?;
    publish(&scene, &oracle, 10_000, |_| true).await?;
    relay
        .says("that is a change of the table or of the application")
        .await?;
    assert_eq!(scene.dead().await?.len(), 0);
    accept_poison(&scene).await?;
    let verdict = scene.holds(&oracle, relay).await?;
    assert_eq!((verdict.delivered, verdict.dead), (10_010, 0));
    balances(&scene).await
}

#[tokio::test]
async fn inv_9_ten_thousand_bad_rows_stop_the_sink_on_clickhouse_26() -> Result<()> {
    many_are_drift(Flavour::V26).await
}

#[tokio::test]
async fn inv_9_ten_thousand_bad_rows_stop_the_sink_on_clickhouse_18() -> Result<()> {
    many_are_drift(Flavour::V18).await
}

/// A retry delivers each event once, byte for byte and with the columns that users added; what is
/// still refused is a dead letter as before.
async fn retried(flavour: Flavour) -> Result<()> {
    let scene = scene(flavour).await?;
    scene
        .postgres
        .execute(
            r#"alter table pillarbox.event
                 add column tenant text default 'some"body',
                 add column "it's" json default ' {"a": "\u0000\ud800"}'"#,
        )
        .await?;
    for column in ["tenant String", "`it's` String"] {
        let add = format!("ALTER TABLE {TABLE} ADD COLUMN {column}");
        scene.clickhouse.query(&add).await?;
    }
    let oracle = Oracle::new();
    publish(&scene, &oracle, 60, |n| n % 20 == 7).await?;
    assert_eq!(drained(&scene, &oracle).await?.dead, 3);
    retry(&scene).await?;
    // In vain.
    assert_eq!(drained(&scene, &oracle).await?.dead, 3);
    let dead = "select count(*) from pillarbox.dead_letter where state = 'dead'";
    assert_eq!(scene.number(dead).await?, 3);
    accept_poison(&scene).await?;
    retry(&scene).await?;
    let verdict = drained(&scene, &oracle).await?;
    assert_eq!((verdict.delivered, verdict.dead), (60, 0));
    let added = format!(
        r#"select count() from {TABLE}
           where tenant = 'some"body' and `it's` = ' {{"a": "\\u0000\\ud800"}}'"#
    );
    assert_eq!(scene.clickhouse.query(&added).await?.trim(), "60");
    balances(&scene).await
}

#[tokio::test]
async fn inv_2_retried_dead_letters_arrive_once_in_clickhouse_26() -> Result<()> {
    retried(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_retried_dead_letters_arrive_once_in_clickhouse_18() -> Result<()> {
    retried(Flavour::V18).await
}

/// The relay is killed again and again while it searches for poison, at each step of the spine.
async fn killed_while_splitting(flavour: Flavour) -> Result<()> {
    let scene = scene(flavour).await?;
    let oracle = Oracle::new();
    let steps = [
        "seal-inserted",
        "before-send",
        "block-answered",
        "before-confirm",
    ];
    let mut dead = 0;
    for (round, step) in steps.into_iter().enumerate() {
        for passed in [1, 4] {
            dead += publish(&scene, &oracle, 12, |n| n == round).await?.len() as u64;
            let mut relay = scene.relay("run", &format!("{step}={passed}*off->return"))?;
            relay.envs(VARIABLES);
            let mut relay = scene.spawn(&mut relay)?;
            let settled = eventually("the kill or the end", PATIENCE, || async {
                let arrived = scene.count().await? + scene.dead().await?.len() as u64;
                Ok((arrived >= oracle.published() && scene.in_flight().await? == 0).then_some(()))
            });
            tokio::select! {
                ended = relay.ended() => ensure!(!ended?.success(), "{}", relay.log_tail()),
                settled = settled => {
                    settled.with_context(|| relay.log_tail())?;
                    relay.kill().await?;
                }
            }
        }
    }
    let verdict = drained(&scene, &oracle).await?;
    assert_eq!(verdict.dead, dead);
    balances(&scene).await
}

#[tokio::test]
async fn inv_2_and_9_killed_while_splitting_for_clickhouse_26() -> Result<()> {
    killed_while_splitting(Flavour::V26).await
}

#[tokio::test]
async fn inv_2_and_9_killed_while_splitting_for_clickhouse_18() -> Result<()> {
    killed_while_splitting(Flavour::V18).await
}
