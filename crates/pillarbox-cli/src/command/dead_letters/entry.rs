//! Dead letters of intakes: entries of a queue, or lines of a file, that are no events.

use pillarbox_relay::intake::letters::{self, Retried};
use serde_json::{Value, json};
use tokio_postgres::{Client, Row};

use crate::exit::Failure;
use crate::output;

/// What `show` prints of an entry; `--json` has it whole.
const SHOWN_MAX: usize = 64 * 1024;

/// The letters of one intake, or of all, newest first.
pub(super) async fn list(
    client: &Client,
    intake: Option<&str>,
    all: bool,
    limit: i64,
) -> Result<Vec<Row>, Failure> {
    const LIST: &str = include_str!("../sql/intake_letters.sql");
    if let Some(name) = intake {
        check_known(client, name).await?;
    }
    Ok(client.query(LIST, &[&intake, &all, &limit]).await?)
}

async fn check_known(client: &Client, name: &str) -> Result<(), Failure> {
    const KNOWN: &str = include_str!("../sql/intake_names.sql");
    let rows = client.query(KNOWN, &[]).await?;
    let names: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    if names.contains(&name) {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "no intake named {name} has taken anything yet (known: {})",
        names.join(", ")
    )))
}

pub(super) fn table(rows: &[Row]) -> Result<(), Failure> {
    let head = [
        "number", "state", "intake", "place", "bytes", "code", "reason",
    ];
    let mut table = output::table(&head);
    for row in rows {
        let code: Option<String> = row.get("code");
        table.add_row([
            row.get::<_, i64>("dead_letter").to_string(),
            row.get("state"),
            row.get("name"),
            row.get("place"),
            row.get::<_, i64>("bytes").to_string(),
            code.unwrap_or_else(|| "-".to_owned()),
            row.get("reason"),
        ]);
    }
    output::show(&table)
}

pub(super) fn as_json(row: &Row) -> Value {
    let event_id: Option<uuid::Uuid> = row.get("event_id");
    json!({
        "number": row.get::<_, i64>("dead_letter"),
        "state": row.get::<_, String>("state"),
        "intake": row.get::<_, String>("name"),
        "place": row.get::<_, String>("place"),
        "format": row.get::<_, String>("format"),
        "bytes": row.get::<_, i64>("bytes"),
        "dead_at": row.get::<_, String>("dead_at"),
        "code": row.get::<_, Option<String>>("code"),
        "reason": row.get::<_, String>("reason"),
        "event_id": event_id.map(|id| id.to_string()),
    })
}

/// One letter with its entry: as text, or as hexadecimal digits where it is none.
pub(super) async fn show(client: &Client, number: i64) -> Result<Option<Value>, Failure> {
    const SHOW: &str = include_str!("../sql/intake_letter.sql");
    let Some(row) = client.query_opt(SHOW, &[&number]).await? else {
        return Ok(None);
    };
    let mut letter = as_json(&row);
    letter["decided_by"] = row.get::<_, Option<String>>("decided_by").into();
    letter["decided_reason"] = row.get::<_, Option<String>>("decided_reason").into();
    let bytes = letters::bytes(client, number).await?;
    match String::from_utf8(bytes) {
        Ok(text) => letter["entry"] = text.into(),
        Err(error) => {
            let digits = |byte: &u8| format!("{byte:02x}");
            let hex: String = error.as_bytes().iter().map(digits).collect();
            letter["entry_hex"] = hex.into();
        }
    }
    Ok(Some(letter))
}

/// The beginning of a long text, for people.
pub(super) fn shortened(text: &str) -> &str {
    let end = text.floor_char_boundary(SHOWN_MAX);
    text.get(..end).unwrap_or(text)
}

/// What a second try of several letters gave.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) published: u64,
    pub(super) dead: u64,
    /// Numbers that are no letters of intakes, or are settled.
    pub(super) unknown: Vec<i64>,
}

/// Tries the letters with these numbers, or all that are dead, of one intake or of every one.
pub(super) async fn retry(
    client: &mut Client,
    intake: Option<&str>,
    numbers: Option<&[i64]>,
) -> Result<Tried, Failure> {
    let numbers = match numbers {
        Some(numbers) => numbers.to_vec(),
        None => dead(client, intake).await?,
    };
    let mut tried = Tried::default();
    for number in numbers {
        match letters::retry(client, number).await? {
            Retried::Published(_) => tried.published += 1,
            Retried::Dead(_) => tried.dead += 1,
            Retried::Settled => tried.unknown.push(number),
        }
    }
    Ok(tried)
}

async fn dead(client: &Client, intake: Option<&str>) -> Result<Vec<i64>, Failure> {
    const DEAD: &str = include_str!("../sql/intake_letters_dead.sql");
    if let Some(name) = intake {
        check_known(client, name).await?;
    }
    let rows = client.query(DEAD, &[&intake]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Drops the letters with these numbers, or all that are dead, of one intake or of every one; gives the
/// numbers that were dropped.
pub(super) async fn drop(
    client: &Client,
    intake: Option<&str>,
    numbers: Option<&[i64]>,
    reason: &str,
) -> Result<Vec<i64>, Failure> {
    const DROP: &str = include_str!("../sql/intake_letters_drop.sql");
    if let Some(name) = intake {
        check_known(client, name).await?;
    }
    let rows = client.query(DROP, &[&intake, &numbers, &reason]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
