//! The preflight: what the server and the table are, checked before the first event is sealed.
//!
//! A refusal names the object and the statement that mends it.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;

use super::client::Client;
use super::config::ClickHouseConfig;
use super::mapping::Mapping;
use super::partition::Rule;
use super::plan::{ClickHousePlan, Details, Layout};
use super::pool::Pool;
use super::report::SinkReport;
use super::table::{Server, SinkColumn, Table, ViewTarget};
use super::verdict::{refuse, trouble};
use super::{replicas, settings, sql};
use crate::sink::{Guarantee, OutboxColumn, Terms, TokenWindow, Trouble};

/// Deduplication window that the remedies propose: 10,000 blocks are hours of a busy sink.
pub(super) const WINDOW_BLOCKS: u64 = 10_000;

/// On what a batch is sealed now.
fn terms(mapping: &Mapping, token_window: TokenWindow) -> Terms {
    let proven = mapping.digest.iter().map(|at| &mapping.columns[*at]);
    Terms {
        types: proven
            .clone()
            .map(|column| column.of.wire.clone())
            .collect(),
        proven: proven.map(|column| column.name.clone()).collect(),
        token_window,
    }
}

/// How long a batch waits for a look at the table's columns.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Checks everything and makes the plan.
pub(super) async fn plan(
    client: &Client,
    config: &ClickHouseConfig,
    outbox: &[OutboxColumn],
) -> Result<ClickHousePlan, Trouble> {
    let server = Server::ask(client).await.map_err(|fault| trouble(&fault))?;
    check_readonly(&server)?;
    let found = Table::find(client, &config.database, &config.table).await;
    let table = found
        .map_err(|fault| trouble(&fault))?
        .ok_or_else(|| no_table(config))?;
    check_engine(&table, client.endpoints())?;
    check_async(&server, &table)?;
    let unreached = replicas::check(client, &table).await?;
    let columns = SinkColumn::of(client, &config.database, &config.table).await;
    let columns = columns.map_err(|fault| trouble(&fault))?;
    check_rights(client, &table).await?;
    let targets = table
        .view_targets(client)
        .await
        .map_err(|fault| trouble(&fault))?;
    let mapping = Mapping::new(&server, &table, &columns, outbox, &config.redacted)?;
    let rule = partition_rule(&server, &table, &mapping, outbox)?;
    let order = mapping.order(&server, &table);
    let mut warnings = mapping.warnings.clone();
    warnings.extend(warnings_about(&table));
    warnings.extend(changing_columns(&server, &table, &columns));
    warnings.extend(unreached);
    let choice = Choice::make(&server, &table, &targets, mapping.batch, config)?;
    warnings.extend(choice.warnings);
    let report = SinkReport {
        table: table.shown(),
        version: server.version.clone(),
        engine: table.engine.clone(),
        guarantee: choice.guarantee.as_str(),
        guarantee_reason: choice.reason,
        window: choice.window,
        partition: table.partition_key.clone(),
        sorting_key: table.sorting_key.clone(),
        columns: mapping.report(),
        views: targets.iter().map(|target| target.view.clone()).collect(),
        warnings,
    };
    let names = mapping.columns.iter().map(|column| column.name.clone());
    Ok(ClickHousePlan(Arc::new(Details {
        names: names.collect(),
        insert: insert_statement(&table, &mapping),
        guarantee: choice.guarantee,
        terms: terms(&mapping, choice.window),
        settings: insert_settings(&server, mapping.batch),
        has_token: server.knows(settings::TOKEN),
        has_log_comment: server.knows(settings::LOG_COMMENT),
        replicated: table.is_replicated(),
        in_replicas: table.in_replicas(),
        has_views: !targets.is_empty(),
        partition_key: table.partition_key.clone(),
        outbox: outbox.to_vec(),
        table: columns,
        layout: Arc::new(Layout {
            redaction: mapping.redaction(&config.redacted),
            columns: mapping.columns,
            digest: mapping.digest,
            batch: mapping.batch,
            rule,
            order,
        }),
        report,
        pool: Pool::default(),
    })))
}

/// Whether the table still has the columns of the plan. So long as it cannot be asked, it has.
pub(super) async fn is_current(
    client: &Client,
    config: &ClickHouseConfig,
    plan: &ClickHousePlan,
) -> bool {
    let asked = SinkColumn::of(client, &config.database, &config.table);
    match tokio::time::timeout(LOOK_MAX, asked).await {
        Ok(Ok(columns)) => {
            // Versions of a server differ in how they print a default.
            let seen = |column: &SinkColumn| {
                let SinkColumn {
                    name,
                    type_name,
                    default_kind,
                    ..
                } = column;
                (name.clone(), type_name.clone(), default_kind.clone())
            };
            columns.iter().map(seen).eq(plan.0.table.iter().map(seen))
        }
        Ok(Err(_)) | Err(_) => true,
    }
}

/// Whether tokens are remembered as they were when the plan was made.
pub(super) async fn remembers(
    client: &Client,
    config: &ClickHouseConfig,
    plan: &ClickHousePlan,
) -> Result<bool, Trouble> {
    let server = Server::ask(client).await.map_err(|fault| trouble(&fault))?;
    let found = Table::find(client, &config.database, &config.table).await;
    let table = found
        .map_err(|fault| trouble(&fault))?
        .ok_or_else(|| no_table(config))?;
    let targets = table
        .view_targets(client)
        .await
        .map_err(|fault| trouble(&fault))?;
    let choice = Choice::make(&server, &table, &targets, plan.0.layout.batch, config)?;
    Ok(choice.window == plan.0.terms.token_window && choice.guarantee == plan.0.guarantee)
}

fn insert_settings(server: &Server, has_batch: bool) -> Vec<(&'static str, &'static str)> {
    // Without a token and a batch number, two batches of the same content are one to the server.
    let is_by_content = !has_batch && !server.knows(settings::TOKEN);
    let known = settings::INSERT
        .into_iter()
        .filter(|(name, _)| server.knows(name))
        .map(|(name, value)| match name {
            settings::DEDUPLICATE if is_by_content => (name, "0"),
            _ => (name, value),
        });
    known.chain(settings::HTTP).collect()
}

fn insert_statement(table: &Table, mapping: &Mapping) -> String {
    let names = mapping.columns.iter().map(|column| column.name.as_str());
    let batch = mapping.batch.then_some("batch");
    let names: Vec<String> = names.chain(batch).map(sql::ident).collect();
    let target = sql::table(&table.database, &table.name);
    format!("INSERT INTO {target} ({}) FORMAT Native", names.join(", "))
}

pub(super) fn no_table(config: &ClickHouseConfig) -> Trouble {
    refuse(format!(
        "table {}.{} does not exist or cannot be seen; create it with pillarbox sink create",
        config.database, config.table
    ))
}

fn check_readonly(server: &Server) -> Result<(), Trouble> {
    match server.settings.get(settings::READONLY).map(String::as_str) {
        None | Some("0") => Ok(()),
        Some(value) => Err(refuse(format!(
            "the sink's user has readonly = {value}; give it a profile with readonly = 0"
        ))),
    }
}

fn check_engine(table: &Table, endpoints: usize) -> Result<(), Trouble> {
    let (shown, engine) = (table.shown(), &table.engine);
    if engine == "Distributed" {
        return Err(refuse(format!(
            "{shown} has the engine Distributed, which cannot say what became of an insert; point \
             the sink at the local table of each shard"
        )));
    }
    if engine.ends_with("View") {
        return Err(refuse(format!(
            "{shown} is a view; point the sink at the table behind it"
        )));
    }
    if !table.is_merge_tree() {
        return Err(refuse(format!(
            "{shown} has the engine {engine}; the sink needs one of the MergeTree family"
        )));
    }
    if endpoints > 1 && !table.is_replicated() {
        return Err(refuse(format!(
            "{shown} has the engine {engine}, which is not replicated, but the sink has \
             {endpoints} urls; use one url or a ReplicatedMergeTree"
        )));
    }
    Ok(())
}

/// Servers take a table's own setting for the insert's: ours would not override it.
fn check_async(server: &Server, table: &Table) -> Result<(), Trouble> {
    if !server.is_async(table) {
        return Ok(());
    }
    Err(refuse(format!(
        "{} makes every insert asynchronous by its setting async_insert = 1, and an asynchronous \
         insert is no proof that rows are written; ALTER TABLE {} MODIFY SETTING async_insert = 0",
        table.shown(),
        sql::table(&table.database, &table.name)
    )))
}

/// INSERT by `CHECK GRANT`, where the server has it; SELECT by selecting nothing.
async fn check_rights(client: &Client, table: &Table) -> Result<(), Trouble> {
    #[derive(Deserialize)]
    struct Granted {
        result: serde_json::Value,
    }
    let target = sql::table(&table.database, &table.name);
    let select = format!("SELECT 1 FROM {target} LIMIT 0");
    client
        .query(&select)
        .await
        .map_err(|fault| trouble(&fault))?;
    // Servers without CHECK GRANT answer with a syntax error; there the first insert tells.
    let granted = client
        .rows::<Granted>(&format!("CHECK GRANT INSERT ON {target}"))
        .await;
    let refused = granted
        .ok()
        .and_then(|rows| rows.into_iter().next())
        .is_some_and(|granted| {
            granted.result == serde_json::json!(0) || granted.result == serde_json::json!("0")
        });
    if refused {
        return Err(refuse(format!(
            "the sink's user may not insert; GRANT INSERT ON {} TO it",
            table.shown()
        )));
    }
    Ok(())
}

fn partition_rule(
    server: &Server,
    table: &Table,
    mapping: &Mapping,
    outbox: &[OutboxColumn],
) -> Result<Rule, Trouble> {
    let zone = TimeZone::get(&server.zone).ok();
    let find = |name: &str| {
        // Another reading may give an expression another value, and a row another partition.
        let is_plain = |column: &&OutboxColumn| column.expression.is_none() && column.name == name;
        outbox.iter().find(is_plain)?;
        let at = mapping
            .columns
            .iter()
            .position(|column| column.name == name)?;
        Some((at, mapping.columns[at].of.clone()))
    };
    Rule::parse(&table.partition_key, zone, server.starts_1970, find).map_err(|what| {
        refuse(format!(
            "{}: {what}; supported are none, toYYYYMM, toYYYYMMDD, toDate and toMonday of a time \
             column of the event; recreate the table with one of them",
            table.shown()
        ))
    })
}

fn warnings_about(table: &Table) -> Vec<String> {
    let mut warnings = Vec::new();
    if !table.keeps_rows() {
        warnings.push(format!(
            "{} has the engine {}, whose merges fold rows: verify may count fewer than delivered",
            table.shown(),
            table.engine
        ));
    }
    warnings
}

/// Functions whose value is another one when the same block comes again.
const CHANGING: [&str; 6] = [
    "now(",
    "now64(",
    "today(",
    "yesterday(",
    "rand",
    "generateUUID",
];

/// Columns that make the same block another one to servers that know blocks by their content.
fn changing_columns(server: &Server, table: &Table, columns: &[SinkColumn]) -> Vec<String> {
    if server.knows(settings::TOKEN) || !table.is_replicated() {
        return Vec::new();
    }
    let changes = |column: &&SinkColumn| {
        let is_stored = matches!(column.default_kind.as_str(), "DEFAULT" | "MATERIALIZED");
        let expression = &column.default_expression;
        is_stored && CHANGING.iter().any(|name| expression.contains(name))
    };
    let warning = |column: &SinkColumn| {
        format!(
            "column {} of {} is {} {}: a block that comes a second time, by another replica or from a \
             relay that was frozen, is not dropped; ALTER TABLE {} DROP COLUMN {}",
            column.name,
            table.shown(),
            column.default_kind,
            column.default_expression,
            sql::table(&table.database, &table.name),
            sql::ident(&column.name)
        )
    };
    columns.iter().filter(changes).map(warning).collect()
}

/// The guarantee, and why.
struct Choice {
    guarantee: Guarantee,
    reason: String,
    window: TokenWindow,
    warnings: Vec<String>,
}

impl Choice {
    fn make(
        server: &Server,
        table: &Table,
        targets: &[ViewTarget],
        batch: bool,
        config: &ClickHouseConfig,
    ) -> Result<Self, Trouble> {
        let filled = targets.iter().filter_map(|target| target.table.as_ref());
        let window = filled
            .filter(|into| into.is_merge_tree())
            .map(|into| server.window(into))
            .fold(server.window(table), TokenWindow::min);
        let chosen = |guarantee, reason: String, warnings| {
            Ok(Self {
                guarantee,
                reason,
                window,
                warnings,
            })
        };
        let obstacle = match obstacle(server, table, targets) {
            None => {
                let reason = format!("the table remembers the tokens of {} blocks", window.blocks);
                let blind = (!batch).then(|| blind(table, window));
                return chosen(Guarantee::Token, reason, blind.into_iter().collect());
            }
            Some(obstacle) => obstacle,
        };
        if batch && targets.is_empty() {
            let reason = format!("the table has the column batch, and {}", obstacle.what);
            return chosen(Guarantee::Lookup, reason, Vec::new());
        }
        if config.at_least_once_allowed {
            let reason = format!("the configuration allows it, and {}", obstacle.what);
            let doubled = "an insert whose answer is lost is sent again and may be written twice";
            return chosen(Guarantee::AtLeastOnce, reason, vec![doubled.to_owned()]);
        }
        if batch && obstacle.old_server {
            // Views cannot be looked into; without tokens their sums may count a resend twice.
            let reason = format!("the table has the column batch, and {}", obstacle.what);
            let views = "a resend after a failed view may be counted twice by materialized views";
            return chosen(Guarantee::Lookup, reason, vec![views.to_owned()]);
        }
        Err(refuse(format!(
            "{} cannot keep an insert from being written twice: {}; run {}; or accept it with \
             guarantee = \"at-least-once\"",
            table.shown(),
            obstacle.what,
            obstacle.remedy
        )))
    }
}

/// What a token alone cannot do: nobody is told when the table forgets it.
fn blind(table: &Table, window: TokenWindow) -> String {
    format!(
        "without the column batch a lost answer is settled by its token alone, which {} forgets after \
         {} blocks: other writers must stay below a block a second, and an outage of the relay longer \
         than that stops the sink; ALTER TABLE {} ADD COLUMN batch UInt64",
        table.shown(),
        window.blocks,
        sql::table(&table.database, &table.name)
    )
}

/// Why tokens do not work here.
struct Obstacle {
    what: String,
    remedy: String,
    old_server: bool,
}

fn obstacle(server: &Server, table: &Table, targets: &[ViewTarget]) -> Option<Obstacle> {
    if !server.knows(settings::TOKEN) {
        let name = sql::table(&table.database, &table.name);
        return Some(Obstacle {
            what: format!(
                "clickhouse {} knows no deduplication tokens",
                server.version
            ),
            remedy: format!("ALTER TABLE {name} ADD COLUMN batch UInt64"),
            old_server: true,
        });
    }
    if server.window(table).blocks == 0 {
        return Some(Obstacle {
            what: format!("the deduplication window of {} is 0", table.shown()),
            remedy: widen(table),
            old_server: false,
        });
    }
    for target in targets {
        let Some(into) = &target.table else {
            return Some(Obstacle {
                what: format!(
                    "the target of the materialized view {} cannot be seen",
                    target.view
                ),
                remedy: format!(
                    "GRANT SHOW TABLES, SHOW COLUMNS ON {} to the sink's user",
                    target.view
                ),
                old_server: false,
            });
        };
        // Null keeps nothing; what its views fill is among the targets.
        if !into.is_merge_tree() && into.engine != "Null" {
            return Some(Obstacle {
                what: format!(
                    "{}, which the materialized view {} fills, has the engine {}, which remembers no \
                     tokens",
                    into.shown(),
                    target.view,
                    into.engine
                ),
                remedy: format!(
                    "CREATE the view {} again on a table of the MergeTree family",
                    target.view
                ),
                old_server: false,
            });
        }
        if into.is_merge_tree() && server.window(into).blocks == 0 {
            return Some(Obstacle {
                what: format!(
                    "the deduplication window of {}, which the materialized view {} fills, is 0",
                    into.shown(),
                    target.view
                ),
                remedy: widen(into),
                old_server: false,
            });
        }
    }
    None
}

fn widen(table: &Table) -> String {
    let setting = if table.is_replicated() {
        "replicated_deduplication_window"
    } else {
        "non_replicated_deduplication_window"
    };
    let name = sql::table(&table.database, &table.name);
    format!("ALTER TABLE {name} MODIFY SETTING {setting} = {WINDOW_BLOCKS}")
}
