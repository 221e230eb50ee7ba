//! The settings that every insert carries, by name: defaults change between releases, and did.

/// What an insert sets, where the server knows the name.
///
/// The sizes pin one Native block to one insert block: a block that is split differently is another
/// block to the deduplication.
pub(super) const INSERT: [(&str, &str); 18] = [
    ("async_insert", "0"),
    ("wait_for_async_insert", "1"),
    (DEDUPLICATE, "1"),
    ("deduplicate_insert", "enable"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ("input_format_native_allow_types_conversion", "0"),
    ("input_format_null_as_default", "0"),
    ("input_format_skip_unknown_fields", "0"),
    ("materialized_views_ignore_errors", "0"),
    ("throw_on_max_partitions_per_insert_block", "1"),
    ("min_insert_block_size_rows", "1048449"),
    ("min_insert_block_size_bytes", "268402944"),
    ("max_insert_threads", "1"),
    ("insert_distributed_sync", "1"),
    ("distributed_foreground_insert", "1"),
    ("send_progress_in_http_headers", "0"),
    // A partition expression without a zone is evaluated in the server's.
    ("session_timezone", ""),
    // Two plans of the same table must not differ in what an absent column becomes.
    ("insert_allow_materialized_columns", "0"),
];

/// What every other statement sets, where the server knows the name: a result that a limit, a cache
/// or a sample of the user's profile cut short would be a wrong look.
pub(super) const QUERY: [(&str, &str); 15] = [
    ("read_overflow_mode", "throw"),
    ("read_overflow_mode_leaf", "throw"),
    ("timeout_overflow_mode", "throw"),
    ("timeout_overflow_mode_leaf", "throw"),
    ("result_overflow_mode", "throw"),
    ("group_by_overflow_mode", "throw"),
    ("set_overflow_mode", "throw"),
    ("sort_overflow_mode", "throw"),
    ("use_query_cache", "0"),
    ("session_timezone", ""),
    ("limit", "0"),
    ("offset", "0"),
    ("apply_deleted_mask", "1"),
    ("optimize_trivial_approximate_count_query", "0"),
    ("empty_result_for_aggregation_by_empty_set", "0"),
];

/// Parameters of HTTP that are no settings: the answer comes when everything is done.
pub(super) const HTTP: [(&str, &str); 1] = [("wait_end_of_query", "1")];

/// Lets the server remember a block by a name.
pub(super) const TOKEN: &str = "insert_deduplication_token";
/// Lets the server drop a block that it has: by its token, or else by its content.
pub(super) const DEDUPLICATE: &str = "insert_deduplicate";
/// Shown in `system.query_log`.
pub(super) const LOG_COMMENT: &str = "log_comment";
/// Not 0 when the user may not write or may not choose settings.
pub(super) const READONLY: &str = "readonly";
