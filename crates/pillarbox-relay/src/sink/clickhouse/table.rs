//! What the server says about a table: `system.tables`, `system.columns`, settings and views.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use super::answer::Fault;
use super::client::Client;
use super::config::ClickHouseConfig;
use super::create::Dialect;
use super::fence::trouble_at;
use super::lookup::quoted;
use super::{settings, sql};
use crate::sink::{TokenWindow, Trouble};

/// Views that feed views that feed views: a chain longer than this is a mistake.
const VIEWS_MAX: usize = 200;
/// Table settings that decide about deduplication.
const WINDOW_SETTINGS: [&str; 4] = [
    "non_replicated_deduplication_window",
    "replicated_deduplication_window",
    "replicated_deduplication_window_seconds",
    "async_insert",
];

/// The server, as far as the sink cares.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) version: String,
    pub(super) zone: String,
    /// Whether it knows no local date before 1970-01-01.
    pub(super) starts_1970: bool,
    /// Values of the settings that it knows, of those that the sink uses.
    pub(super) settings: BTreeMap<String, String>,
    /// Defaults of the table settings that matter.
    merge_tree: BTreeMap<String, String>,
}

/// One row of `system.tables`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Table {
    pub(super) database: String,
    pub(super) name: String,
    pub(super) engine: String,
    engine_full: String,
    pub(super) partition_key: String,
    pub(super) sorting_key: String,
    create_table_query: String,
    dependencies_database: Vec<String>,
    dependencies_table: Vec<String>,
}

/// One row of `system.columns`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct SinkColumn {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) type_name: String,
    pub(super) default_kind: String,
    pub(super) default_expression: String,
}

impl SinkColumn {
    /// The columns of a table; none when it is not there.
    pub(super) async fn of(
        client: &Client,
        database: &str,
        table: &str,
    ) -> Result<Vec<Self>, Fault> {
        client
            .rows(&format!(
                "SELECT name, type, default_kind, default_expression FROM system.columns \
                 WHERE database = {} AND table = {}",
                sql::text(database),
                sql::text(table)
            ))
            .await
    }
}

/// A table that a materialized view writes into.
#[derive(Clone, Debug)]
pub(super) struct ViewTarget {
    pub(super) view: String,
    /// `None` when it cannot be seen.
    pub(super) table: Option<Table>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct About {
    version: String,
    zone: String,
    first_year: u16,
}

#[derive(Deserialize)]
struct Setting {
    name: String,
    value: String,
}

impl Server {
    pub(super) async fn ask(client: &Client) -> Result<Self, Fault> {
        let about = "SELECT version() AS version, timezone() AS zone, \
                     toYear(toDateTime(0, 'America/New_York')) AS first_year";
        let about: Vec<About> = client.rows(about).await?;
        let About {
            version,
            zone,
            first_year,
        } = about.into_iter().next().unwrap_or_default();
        let pinned = settings::INSERT.iter().chain(&settings::QUERY);
        let wanted = pinned.map(|(name, _)| *name).chain([
            settings::TOKEN,
            settings::LOG_COMMENT,
            settings::READONLY,
        ]);
        let settings = named_values(client, "system.settings", wanted).await?;
        let pins = settings::QUERY.into_iter();
        client.pin(pins.filter(|(name, _)| settings.contains_key(*name)));
        let merge_tree =
            named_values(client, "system.merge_tree_settings", WINDOW_SETTINGS).await?;
        Ok(Self {
            version,
            zone,
            starts_1970: first_year == 1970,
            settings,
            merge_tree,
        })
    }

    pub(super) fn dialect(&self) -> Dialect {
        if self.knows(settings::TOKEN) {
            Dialect::Current
        } else {
            Dialect::Old
        }
    }

    pub(super) fn knows(&self, setting: &str) -> bool {
        self.settings.contains_key(setting)
    }

    /// The value of a table setting: the table's own, or the server's default.
    fn of_table(&self, table: &Table, setting: &str) -> Option<u64> {
        let own = table.own_setting(setting);
        own.or_else(|| self.merge_tree.get(setting).cloned())?
            .parse()
            .ok()
    }

    /// How long `table` remembers tokens and blocks.
    pub(super) fn window(&self, table: &Table) -> TokenWindow {
        if table.is_replicated() {
            let seconds = self.of_table(table, "replicated_deduplication_window_seconds");
            let blocks = self
                .of_table(table, "replicated_deduplication_window")
                .unwrap_or(0);
            TokenWindow {
                blocks,
                seconds: Some(seconds.unwrap_or(0)),
            }
        } else {
            let blocks = self
                .of_table(table, "non_replicated_deduplication_window")
                .unwrap_or(0);
            TokenWindow {
                blocks,
                seconds: None,
            }
        }
    }

    /// Whether the table itself turns inserts into asynchronous ones.
    pub(super) fn is_async(&self, table: &Table) -> bool {
        let own = table.own_setting("async_insert");
        own.or_else(|| self.merge_tree.get("async_insert").cloned())
            .is_some_and(|value| !matches!(value.as_str(), "0" | "false"))
    }
}

async fn named_values(
    client: &Client,
    system_table: &str,
    names: impl IntoIterator<Item = &'static str>,
) -> Result<BTreeMap<String, String>, Fault> {
    let names = sql::texts(names);
    let statement = format!(
        "SELECT name, toString(value) AS value FROM {system_table} WHERE name IN ({names})"
    );
    let found: Vec<Setting> = client.rows(&statement).await?;
    Ok(found
        .into_iter()
        .map(|setting| (setting.name, setting.value))
        .collect())
}

/// By so much the server's clock may run ahead of PostgreSQL's between two corrections.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);

/// Whether the table is on every replica as it was before a batch of this age was sealed.
pub(super) async fn is_unchanged(
    client: &Client,
    config: &ClickHouseConfig,
    age: Duration,
) -> Result<bool, Trouble> {
    #[derive(Deserialize)]
    struct Changed {
        #[serde(deserialize_with = "quoted")]
        seconds: u64,
    }
    let statement = format!(
        "SELECT toUInt64(greatest(toInt64(now()) - toInt64(metadata_modification_time), 0)) AS seconds \
         FROM system.tables WHERE database = {} AND name = {}",
        sql::text(&config.database),
        sql::text(&config.table)
    );
    for replica in 0..client.endpoints() {
        let found = client.rows_at::<Changed>(replica, &statement).await;
        let found = found.map_err(|fault| trouble_at(client, replica, &fault))?;
        let changed = found.first().map_or(0, |changed| changed.seconds);
        if Duration::from_secs(changed) <= age + CLOCK_SKEW_MAX {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Table {
    pub(super) async fn find(
        client: &Client,
        database: &str,
        name: &str,
    ) -> Result<Option<Self>, Fault> {
        let found = client
            .rows(&format!(
                "SELECT database, name, engine, engine_full, partition_key, sorting_key, \
                 create_table_query, dependencies_database, dependencies_table \
                 FROM system.tables WHERE database = {} AND name = {}",
                sql::text(database),
                sql::text(name)
            ))
            .await?;
        Ok(found.into_iter().next())
    }

    /// `database.table`, for messages.
    pub(super) fn shown(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }

    pub(super) fn is_replicated(&self) -> bool {
        self.engine.starts_with("Replicated") || self.engine.starts_with("Shared")
    }

    /// The condition that finds it in `system.replicas`; `None` where it cannot be there.
    pub(super) fn in_replicas(&self) -> Option<String> {
        let (database, name) = (sql::text(&self.database), sql::text(&self.name));
        let is_there = self.engine.starts_with("Replicated");
        is_there.then(|| format!("database = {database} AND table = {name}"))
    }

    pub(super) fn is_merge_tree(&self) -> bool {
        self.engine.ends_with("MergeTree")
    }

    /// Whether merges keep every row.
    pub(super) fn keeps_rows(&self) -> bool {
        matches!(
            self.engine.as_str(),
            "MergeTree" | "ReplicatedMergeTree" | "SharedMergeTree"
        )
    }

    /// A setting of the table's SETTINGS clause.
    pub(super) fn own_setting(&self, name: &str) -> Option<String> {
        let (_, settings) = self.engine_full.rsplit_once(" SETTINGS ")?;
        settings.split(',').find_map(|setting| {
            let (key, value) = setting.split_once('=')?;
            (key.trim() == name).then(|| value.trim().trim_matches('\'').to_owned())
        })
    }

    /// Every table that an insert into this one reaches through materialized views.
    pub(super) async fn view_targets(&self, client: &Client) -> Result<Vec<ViewTarget>, Fault> {
        let mut targets = Vec::new();
        let mut seen = BTreeSet::new();
        let mut to_visit = self.dependents();
        while let Some((database, name)) = to_visit.pop() {
            if !seen.insert((database.clone(), name.clone())) || seen.len() > VIEWS_MAX {
                continue;
            }
            let shown = format!("{database}.{name}");
            let Some(view) = Self::find(client, &database, &name).await? else {
                targets.push(ViewTarget {
                    view: shown,
                    table: None,
                });
                continue;
            };
            if view.engine != "MaterializedView" {
                continue;
            }
            let target = view.target(client).await?;
            to_visit.extend(target.iter().flat_map(Self::dependents));
            to_visit.extend(view.dependents());
            targets.push(ViewTarget {
                view: shown,
                table: target,
            });
        }
        Ok(targets)
    }

    fn dependents(&self) -> Vec<(String, String)> {
        let databases = self.dependencies_database.iter().cloned();
        databases
            .zip(self.dependencies_table.iter().cloned())
            .collect()
    }

    /// The table that this materialized view writes into. Current servers say it; before, it is
    /// named after TO or is an inner one, named after the view or its id.
    async fn target(&self, client: &Client) -> Result<Option<Self>, Fault> {
        let in_system = "SELECT name FROM system.columns WHERE database = 'system' \
                         AND table = 'tables' AND name IN ('target_table', 'uuid')";
        let known: Vec<Name> = client.rows(in_system).await?;
        let knows = |name: &str| known.iter().any(|column| column.name == name);
        let (database, name) = match target_name(&self.create_table_query) {
            Some((database, name)) => (database.unwrap_or_else(|| self.database.clone()), name),
            None if knows("target_table") => self.said(client, "target_table").await?,
            None if knows("uuid") => {
                self.said(client, "concat('.inner_id.', toString(uuid))")
                    .await?
            }
            None => (self.database.clone(), format!(".inner.{}", self.name)),
        };
        match Self::find(client, &database, &name).await? {
            Some(table) => Ok(Some(table)),
            None => Self::find(client, &database, &format!(".inner.{}", self.name)).await,
        }
    }

    /// The database of this view, and what `expression` says about it in `system.tables`.
    async fn said(&self, client: &Client, expression: &str) -> Result<(String, String), Fault> {
        let statement = format!(
            "SELECT said AS name FROM (SELECT {expression} AS said FROM system.tables \
             WHERE database = {} AND name = {})",
            sql::text(&self.database),
            sql::text(&self.name)
        );
        let found: Vec<Name> = client.rows(&statement).await?;
        let name = found
            .into_iter()
            .next()
            .map(|found| found.name)
            .unwrap_or_default();
        Ok((self.database.clone(), name))
    }
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

/// Database and name after `TO` in `CREATE MATERIALIZED VIEW a.b TO c.d (…) AS …`.
fn target_name(statement: &str) -> Option<(Option<String>, String)> {
    let head = statement.split(" AS SELECT").next()?;
    let (_, after) = head.split_once(" TO ")?;
    if head.find(" TO ") > head.find('(') {
        return None;
    }
    let (first, rest) = name_at(after)?;
    match rest.strip_prefix('.').and_then(name_at) {
        Some((second, _)) => Some((Some(first), second)),
        None => Some((None, first)),
    }
}

/// A name, quoted or not, and what follows it.
fn name_at(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('`') {
        let (name, rest) = quoted.split_once('`')?;
        return Some((name.to_owned(), rest));
    }
    let end = text
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(text.len());
    (end > 0).then(|| (text[..end].to_owned(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_of_a_view() {
        let named = |database: &str, name: &str| Some((Some(database.to_owned()), name.to_owned()));
        let with_to = "CREATE MATERIALIZED VIEW d.mv TO d.v (`a` String) AS SELECT a FROM d.t";
        assert_eq!(target_name(with_to), named("d", "v"));
        let quoted = "CREATE MATERIALIZED VIEW d.mv TO `my db`.`v-1` (`a` String) AS SELECT 1";
        assert_eq!(target_name(quoted), named("my db", "v-1"));
        let inner = "CREATE MATERIALIZED VIEW d.mv (`a` String) ENGINE = MergeTree TTL x TO DISK 'y' AS SELECT 1";
        assert_eq!(target_name(inner), None);
    }
}
