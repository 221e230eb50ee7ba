//! The ring: where it stands, and who keeps its leaves from being emptied.

use std::collections::BTreeMap;

use super::finding::{Findings, Remedy};
use super::{Subject, age};
use crate::exit::Failure;

pub(super) async fn examine(subject: &Subject<'_>) -> Result<Findings, Failure> {
    let mut findings = Findings::of("ring");
    position(subject, &mut findings).await?;
    let mut pins: BTreeMap<(String, String), Pin> = BTreeMap::new();
    for slot in 0..4 {
        for pin in pins_of(subject, slot).await? {
            let place = pins.entry((pin.kind.clone(), pin.who.clone()));
            let oldest = place.or_insert_with(|| pin.clone());
            if pin.age_s > oldest.age_s {
                *oldest = pin;
            }
        }
    }
    let patience = subject.older_than.as_secs_f64();
    for pin in pins.into_values().filter(|pin| pin.age_s >= patience) {
        pin.name(&mut findings);
    }
    let fine = format!("nobody has kept a leaf for {}", age(patience));
    findings.fine_unless_found("pinned", fine);
    Ok(findings)
}

async fn position(subject: &Subject<'_>, findings: &mut Findings) -> Result<(), Failure> {
    const POSITION: &str = include_str!("sql/ring_position.sql");
    let row = subject.client.query_one(POSITION, &[]).await?;
    let position: Option<i64> = row.get(0);
    if !row.get::<_, bool>(1) {
        findings.problem(
            "position",
            "the sequence pillarbox.ring_position can be moved by nextval",
            Remedy::psql(
                "alter sequence pillarbox.ring_position increment by 4 minvalue 0 maxvalue 3 \
                 no cycle;",
            ),
        );
    }
    match position {
        Some(slot @ 0..=3) => {
            findings.ok("position", format!("the ring stands on leaf {slot}"));
        }
        _ => findings.problem(
            "position",
            "the ring stands on no leaf: publishers fail",
            Remedy::psql("select pg_catalog.setval('pillarbox.ring_position', 0);"),
        ),
    }
    Ok(())
}

/// Somebody who needs a leaf, or stands in the way of emptying it.
#[derive(Clone)]
struct Pin {
    slot: i32,
    kind: String,
    who: String,
    number: Option<i64>,
    pid: Option<i32>,
    age_s: f64,
    is_paused: bool,
    is_active: bool,
}

async fn pins_of(subject: &Subject<'_>, slot: i32) -> Result<Vec<Pin>, Failure> {
    let sql = include_str!("sql/ring_pins.sql").replace("{slot}", &slot.to_string());
    let class = &pillarbox_relay::schema::LOCK_CLASS;
    let rows = subject.client.query(&sql, &[class]).await?;
    let read = |row: &tokio_postgres::Row| Pin {
        slot,
        kind: row.get(0),
        who: row.get(1),
        number: row.get(2),
        pid: row.get(3),
        age_s: row.get::<_, Option<f64>>(4).unwrap_or(0.0),
        is_paused: row.get(5),
        is_active: row.get(6),
    };
    Ok(rows.iter().map(read).collect())
}

impl Pin {
    fn name(&self, findings: &mut Findings) {
        let Self { slot, who, .. } = self;
        let since = age(self.age_s);
        let number = self.number.unwrap_or(0);
        let (message, remedy) = match self.kind.as_str() {
            "sink" => (
                format!(
                    "leaf {slot} is kept for the sink {who}: all up to batch {number} has arrived \
                     there, and the oldest event that has not is {since} old"
                ),
                self.delivering(),
            ),
            "batch" => (
                format!(
                    "leaf {slot} is kept for batch {number} of the sink {who}, open for {since}"
                ),
                self.delivering(),
            ),
            _ => {
                let pid = self.pid.unwrap_or(0);
                (
                    format!(
                        "leaf {slot} cannot be emptied while {who} (pid {pid}) reads or writes \
                             it, for {since} now"
                    ),
                    Remedy::psql(format!("select pg_catalog.pg_terminate_backend({pid});")),
                )
            }
        };
        findings.warning("pinned", message, remedy);
    }

    fn delivering(&self) -> Remedy {
        let who = &self.who;
        match (self.is_paused, self.is_active) {
            (true, _) => Remedy::shell(format!("pillarbox resume {who}")),
            (_, false) => Remedy::shell("pillarbox relay"),
            (_, true) => Remedy::person(format!(
                "mend what keeps the sink {who} from taking events; \
                 or give it up with: pillarbox sink retire {who}"
            )),
        }
    }
}
