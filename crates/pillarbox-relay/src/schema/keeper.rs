//! Who keeps an upgrade from a table, and what to do about it.

use tokio_postgres::{Client, Error, Row};

/// Which tables somebody keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tables {
    /// The outbox and its leaves, which publishers use.
    Outbox,
    /// All others.
    Others,
}

/// The sessions and prepared transactions that have a lock on one of these tables, with the remedy.
pub(super) async fn name(client: &Client, tables: Tables) -> Result<String, Error> {
    const KEEPERS: &str = include_str!("keepers.sql");
    let of_outbox = tables == Tables::Outbox;
    let rows = client.query(KEEPERS, &[&of_outbox]).await?;
    if rows.is_empty() {
        return Ok("who used it has ended meanwhile".to_owned());
    }
    let keepers: Vec<String> = rows.iter().map(keeper).collect();
    Ok(keepers.join("; "))
}

fn keeper(row: &Row) -> String {
    let shown = |text: Option<String>| text.filter(|text| !text.is_empty());
    let pid: Option<i32> = row.get(0);
    let application = shown(row.get(1)).unwrap_or_else(|| "no name".to_owned());
    let state = shown(row.get(2)).unwrap_or_else(|| "state not shown to this user".to_owned());
    let since: Option<i64> = row.get(3);
    let since = since.map_or_else(String::new, |age_s| format!(" for {age_s} s"));
    let tables: String = row.get(5);
    match (pid, shown(row.get(4))) {
        (Some(pid), _) => format!(
            "pid {pid} ({application}, {state}) has used {tables}{since}: let it end, or run: select \
             pg_terminate_backend({pid})"
        ),
        (None, Some(gid)) => format!(
            "the prepared transaction {gid} has kept {tables}{since}: commit it, or run: rollback \
             prepared {gid}"
        ),
        (None, None) => format!("a prepared transaction has kept {tables}{since}: end it"),
    }
}
