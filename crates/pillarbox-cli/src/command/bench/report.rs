//! What was measured, for people and as JSON.

use pillarbox_relay::verify::{Difference, Finding, Scope};
use serde::Serialize;
use tokio_postgres::Client;

use super::drain::Drain;
use super::latency::Latency;
use super::publish::Publish;
use crate::Place;
use crate::command::verify::{Account, prove};
use crate::destination::Destination;
use crate::exit::Failure;
use crate::output::{self, plural};

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    #[serde(flatten)]
    pub(super) servers: Servers,
    pub(super) publish: Publish,
    pub(super) drain: Drain,
    pub(super) latency: Latency,
    pub(super) verify: Verified,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub(super) struct Servers {
    /// Of database and table, which are gone.
    pub(super) name: String,
    pub(super) sink: String,
    /// Versions.
    pub(super) postgresql: String,
    pub(super) clickhouse: String,
    pub(super) fsync: String,
    pub(super) guarantee: String,
}

/// What became of the events of drain and latency.
#[derive(Debug, Serialize)]
pub(super) struct Verified {
    /// As those who published them counted.
    pub(super) published: u64,
    /// Held by the sink.
    pub(super) delivered: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) altered: u64,
    /// Blocks of which nothing can be said.
    pub(super) unprovable: u64,
    /// Whether the ledger accounts for every event.
    pub(super) is_balanced: bool,
}

impl Verified {
    /// Asks both sides.
    pub(super) async fn find(
        client: &Client,
        destination: &Destination,
        sink: i32,
        published: u64,
    ) -> Result<Self, Failure> {
        let scope = Scope {
            sink,
            since: None,
            batch: None,
        };
        let proof = prove(client, destination, &scope).await?;
        let account = Account::read(client, &destination.name).await?;
        let sum = |rows: fn(&Finding) -> u64| proof.findings.iter().map(rows).sum::<u64>();
        let expected = proof.rows + sum(|finding| finding.expected_rows);
        Ok(Self {
            published,
            delivered: proof.rows + sum(|finding| finding.held_rows),
            lost: published.saturating_sub(expected)
                + sum(|finding| finding.expected_rows.saturating_sub(finding.held_rows)),
            duplicated: expected.saturating_sub(published)
                + sum(|finding| finding.held_rows.saturating_sub(finding.expected_rows)),
            altered: sum(|finding| match finding.difference {
                Difference::Altered => finding.held_rows,
                _ => 0,
            }),
            unprovable: proof.unprovable,
            is_balanced: account.is_balanced(),
        })
    }

    /// Whether each event is there once, as it was published.
    pub(super) fn is_exact(&self) -> bool {
        let wrong = self.lost + self.duplicated + self.altered + self.unprovable;
        wrong == 0 && self.is_balanced && self.published == self.delivered
    }
}

impl Figures {
    pub(super) fn show(&self, place: &Place) -> Result<(), Failure> {
        if place.json {
            return output::json(self);
        }
        self.show_table()?;
        output::line(
            "disk and network decide most of this: compare figures of the same servers, taken at quiet times",
        )?;
        let Verified {
            published,
            delivered,
            lost,
            duplicated,
            altered,
            unprovable,
            is_balanced,
        } = &self.verify;
        if *unprovable > 0 {
            output::line(format!("{} cannot be proven", plural(*unprovable, "block")))?;
        }
        if !is_balanced {
            output::line("the ledger does not account for every event")?;
        }
        output::line(format!(
            "bench: published={published} delivered={delivered} lost={lost} duplicated={duplicated} \
             altered={altered}"
        ))
    }

    fn show_table(&self) -> Result<(), Failure> {
        let Self {
            servers,
            publish,
            drain,
            latency,
            ..
        } = self;
        output::line(format!(
            "postgresql {} (fsync {}), clickhouse {}, guarantee {}",
            servers.postgresql, servers.fsync, servers.clickhouse, servers.guarantee
        ))?;
        output::line("")?;
        let mut table = output::table(&["measured", "rate", "detail"]);
        let tps = |rate: f64| format!("{rate:.0} tps");
        let of_heap = |ratio: f64| format!("{ratio:.2} of heap");
        let clients = format!(
            "plain table; {}, {} bytes",
            plural(publish.clients.into(), "client"),
            publish.bytes
        );
        table.add_row(["publish heap", &tps(publish.heap_tps), &clients]);
        let ratio = of_heap(publish.insert_of_heap);
        table.add_row(["publish insert", &tps(publish.insert_tps), &ratio]);
        let ratio = of_heap(publish.function_of_heap);
        table.add_row(["publish function", &tps(publish.function_tps), &ratio]);
        let rate = format!("{:.0} events/s", drain.events_per_s);
        let detail = format!(
            "{:.1} MB/s; {} in {}, {}; relay: {:.1} s of CPU",
            drain.context_bytes_per_s / 1e6,
            plural(drain.events, "event"),
            plural(drain.batches, "batch"),
            output::duration(drain.seconds),
            drain.relay_cpu_s
        );
        table.add_row(["drain", &rate, &detail]);
        let rate = format!("p50 {:.0} ms", latency.p50_ms);
        let detail = format!(
            "p99 {:.0} ms; {} at {}/s, from COMMIT to confirmed",
            latency.p99_ms,
            plural(latency.events, "event"),
            latency.events_per_s
        );
        table.add_row(["latency", &rate, &detail]);
        output::show(&table)?;
        output::line("")
    }
}

/// The middle one, or between the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = |place: usize| values.get(place).copied().unwrap_or_default();
    let upper = values.len() / 2;
    (middle(values.len().saturating_sub(1) / 2) + middle(upper)) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified() -> Verified {
        Verified {
            published: 7,
            delivered: 7,
            lost: 0,
            duplicated: 0,
            altered: 0,
            unprovable: 0,
            is_balanced: true,
        }
    }

    #[test]
    fn whatever_is_wrong_is_not_exact() {
        assert!(verified().is_exact());
        let wrong: [fn(&mut Verified); 6] = [
            |it| it.delivered = 6,
            |it| it.lost = 1,
            |it| it.duplicated = 1,
            |it| it.altered = 1,
            |it| it.unprovable = 1,
            |it| it.is_balanced = false,
        ];
        for spoil in wrong {
            let mut spoilt = verified();
            spoil(&mut spoilt);
            assert!(!spoilt.is_exact(), "{spoilt:?}");
        }
    }

    #[test]
    fn the_median_is_of_the_sorted_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![2.0, 1.0]), 1.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
