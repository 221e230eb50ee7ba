//! Code 241: the server has no memory for an insert. Nothing is given up, and once the limit is
//! lifted everything is there.

use anyhow::Result;
use pillarbox_testkit::oracle::Oracle;
use pillarbox_testkit::servers::Flavour;

use super::*;

/// Blocks of some megabytes under a limit of ten.
async fn limited_by(setting: &str, words: &str) -> Result<()> {
    let scene = Scene::start(Flavour::V18).await?;
    let oracle = Oracle::new();
    let event = |nth: i64| {
        let context = format!(r#"{{"n":{nth},"text":"{}"}}"#, "x".repeat(900_000));
        Event::at(NOON_US + nth, "large", context)
    };
    let large: Vec<Event> = (0..30).map(event).collect();
    publish(&scene, &oracle, &large).await?;
    profile(&scene.clickhouse, &[(setting, "10000000")]).await?;
    let relay = scene.running_with(&[STOPPED_MS])?;
    relay.says(words).await?;
    // Publishers go on.
    publish(&scene, &oracle, &events(20, 1)).await?;
    profile(&scene.clickhouse, &[]).await?;
    scene.holds(&oracle, relay).await?;
    Ok(())
}

#[tokio::test]
async fn inv_2_memory_for_the_query_is_short() -> Result<()> {
    limited_by("max_memory_usage", "Memory limit (for query) exceeded").await
}

#[tokio::test]
async fn inv_2_memory_for_the_user_is_short() -> Result<()> {
    limited_by(
        "max_memory_usage_for_user",
        "Memory limit (for user) exceeded",
    )
    .await
}

#[tokio::test]
async fn inv_2_memory_of_the_server_is_short() -> Result<()> {
    limited_by(
        "max_memory_usage_for_all_queries",
        "Memory limit (total) exceeded",
    )
    .await
}
