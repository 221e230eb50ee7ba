use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use secrecy::ExposeSecret as _;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn read(text: &str, pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::merge(text, "pillarbox.toml", &environment(pairs))
}

fn refusal(text: &str, pairs: &[(&str, &str)]) -> String {
    read(text, pairs).expect_err("it was accepted").to_string()
}

#[test]
fn nothing_configured_gives_the_defaults() {
    let config = read("", &[]).expect("defaults");
    assert_eq!(config.relay.max_rows, 500_000);
    assert_eq!(config.relay.max_bytes, ByteSize(150_994_944));
    assert_eq!(config.relay.takeover_after.0, Duration::from_secs(15));
    assert!(config.sinks.is_empty());
    let missing = config.postgres().expect_err("no url").to_string();
    assert!(missing.contains("DATABASE_URL"), "{missing}");
    let missing = config.sink("clickhouse").expect_err("no sink").to_string();
    assert!(missing.contains("CLICKHOUSE_URL"), "{missing}");
}

#[test]
fn the_environment_outranks_the_file_and_our_names_outrank_well_known_ones() {
    let text = "[postgres]\nurl = 'postgresql://file/db'\n[relay]\nmax_rows = 5\nmax_age = '2s'\n";
    let url = |config: &Config| {
        let url = config.postgres.url.as_ref().expect("a url");
        url.expose_secret().to_owned()
    };
    let config = read(text, &[]).expect("the file");
    assert_eq!(url(&config), "postgresql://file/db");
    let database = ("DATABASE_URL", "postgresql://database/db");
    let config = read(text, &[database, ("PILLARBOX_RELAY__MAX_ROWS", "7")]).expect("both");
    assert_eq!(url(&config), "postgresql://database/db");
    assert_eq!(config.relay.max_rows, 7);
    assert_eq!(config.relay.max_age.0, Duration::from_secs(2));
    let ours = ("PILLARBOX_POSTGRES__URL", "postgresql://ours/db");
    let config = read(text, &[database, ours]).expect("all");
    assert_eq!(url(&config), "postgresql://ours/db");
    let config = read(text, &[("DATABASE_URL", "")]).expect("an empty variable");
    assert_eq!(url(&config), "postgresql://file/db");
}

#[test]
fn sizes_and_durations_are_written_as_people_do() {
    for (text, bytes) in [
        ("'32MiB'", 32 << 20),
        ("'64 kib'", 64 << 10),
        ("'1MB'", 1_000_000),
        ("4096", 4096),
        ("'4096'", 4096),
    ] {
        let config = read(&format!("[relay]\nmax_bytes = {text}"), &[]).expect(text);
        assert_eq!(config.relay.max_bytes, ByteSize(bytes));
    }
    let config = read("", &[("PILLARBOX_RELAY__MAX_BYTES", "1048576")]).expect("a number");
    assert_eq!(config.relay.max_bytes.to_string(), "1MiB");
    let config = read("[relay]\nmax_age = '1m 30s'", &[]).expect("a duration");
    assert_eq!(config.relay.max_age.0, Duration::from_secs(90));
    for bad in ["'32 MiBs'", "'x'", "-1", "'99999999999TiB'", "true"] {
        let text = refusal(&format!("[relay]\nmax_bytes = {bad}"), &[]);
        assert!(text.contains("relay.max_bytes"), "{text}");
    }
    for bad in ["'soon'", "'-1s'", "5"] {
        let text = refusal(&format!("[relay]\nmax_age = {bad}"), &[]);
        assert!(text.contains("relay.max_age"), "{text}");
    }
}

#[test]
fn a_value_out_of_its_bounds_is_named_with_its_limits() {
    let cases = [
        (
            "[relay]\nmax_rows = 0",
            "relay.max_rows is 0; give it 1 to 1000000",
        ),
        ("[relay]\nmax_rows = 1000001", "give it 1 to 1000000"),
        (
            "[relay]\nmax_bytes = '257MiB'",
            "relay.max_bytes is 257MiB; give it 1KiB to 256MiB",
        ),
        (
            "[relay]\nin_flight = 9",
            "relay.in_flight is 9; give it 1 to 8",
        ),
        (
            "[relay]\ntakeover_after = '1s'",
            "relay.takeover_after is 1s; give it 13s to 600s",
        ),
        (
            "[relay]\nprobe_min = '1s'",
            "relay.probe_max is 250ms, below relay.probe_min",
        ),
        ("[sinks.Big]\ntable = 'x'", "\"Big\" cannot name a sink"),
        ("[sinks.a]\ntable = ''", "sinks.a.table is empty"),
        ("[sinks.a]\nkind = 'kafka'", "kafka"),
        ("[sinks.a]\nguarantee = 'twice'", "at-least-once"),
        ("[sinks.a]\nurl = 'tcp://host:9000'", "http interface"),
    ];
    for (text, wanted) in cases {
        let got = refusal(text, &[]);
        assert!(got.contains(wanted), "{got:?} does not hold {wanted:?}");
    }
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    let cases = [
        (
            "[relay]\nmax_row = 5",
            "unknown key relay.max_row in pillarbox.toml; did you mean max_rows?",
        ),
        (
            "[postgre]\nurl = 'x'",
            "unknown key postgre.url in pillarbox.toml; did you mean postgres?",
        ),
        ("max_rows = 5", "unknown key max_rows in pillarbox.toml"),
        (
            "[sinks.a]\ntabel = 'x'",
            "unknown key sinks.a.tabel in pillarbox.toml; did you mean table?",
        ),
        ("[sinks]\nurl = 'x'", "sinks.url"),
        ("[relay.max_rows]\nx = 1", "relay.max_rows"),
    ];
    for (text, wanted) in cases {
        let got = refusal(text, &[]);
        assert!(got.contains(wanted), "{got:?} does not hold {wanted:?}");
    }
    let got = refusal("", &[("PILLARBOX_RELAY__MAX_ROW", "5")]);
    assert!(got.contains("PILLARBOX_RELAY__MAX_ROW"), "{got}");
    let got = refusal("", &[("PILLARBOX_RELAY_MAX_ROWS", "5")]);
    assert!(got.contains("write PILLARBOX_RELAY__MAX_ROWS"), "{got}");
    // What Kubernetes sets for services of these names.
    let kubernetes = [
        ("PILLARBOX_PORT", "tcp://1"),
        ("PILLARBOX_RELAY_SERVICE_HOST", "x"),
    ];
    read("", &kubernetes).expect("not configuration");
}

#[test]
fn a_clickhouse_url_alone_configures_the_sink_clickhouse() {
    let url = ("CLICKHOUSE_URL", "http://app:p%40ss%2Bw%26rd@one:8123/logs");
    let config = read("", &[url]).expect("a sink");
    let sink = config.sink("clickhouse").expect("clickhouse");
    let [address] = sink
        .url
        .addresses("url")
        .expect("one")
        .try_into()
        .expect("one");
    assert_eq!(address.origin, "http://one:8123");
    assert_eq!(address.user.as_deref(), Some("app"));
    assert_eq!(address.password.expect("one").expose_secret(), "p@ss+w&rd");
    assert_eq!(address.database.as_deref(), Some("logs"));
    let config = read("[sinks.audit]\ntable = 'audit'", &[url]).expect("the only sink");
    assert_eq!(config.sinks.keys().collect::<Vec<_>>(), ["audit"]);
    assert!(!config.sinks["audit"].url.is_empty());
    let two = "[sinks.a]\nurl = ['http://one', 'https://two/']\n[sinks.clickhouse]\nuser = 'x'";
    let config = read(two, &[url]).expect("two sinks");
    let addresses = config.sinks["a"].url.addresses("a").expect("two");
    let origins: Vec<_> = addresses.iter().map(|a| a.origin.as_str()).collect();
    assert_eq!(origins, ["http://one:8123", "https://two:8443"]);
    let variable = ("PILLARBOX_SINKS__CLICKHOUSE__URL", "http://a:1, http://b:2");
    let config = read("", &[url, variable]).expect("ours");
    assert_eq!(
        config.sinks["clickhouse"]
            .url
            .addresses("u")
            .expect("two")
            .len(),
        2
    );
}

#[test]
fn no_error_and_no_debug_output_shows_a_secret() {
    let secret = "hunter2";
    let texts = [
        "[postgres]\nurl = 'postgresql://u:hunter2@h/d'\n[sinks.a]\npassword = 'hunter2'\nurl = 'http://u:hunter2@h'",
        "[sinks.a]\npassword = hunter2",
        "[sinks.a]\npassword = 'hunter2",
        "[sinks.a]\npassword = ['hunter2']",
        "[sinks.a]\nurl = 'hunter2 nonsense://'",
        "[sinks.a]\nurl = ['http://u:hunter2@h:99999']",
        "[sinks.a]\nurl = 'ftp://u:hunter2@h'",
        "[postgres]\nurl = 'postgresql://u:pa?hunter2=x@h/d'",
        "[postgres]\nurl = { password = 'hunter2' }",
        "[sinks.a]\nurl = { password = 'hunter2' }",
    ];
    for text in texts {
        let shown = match read(text, &[]) {
            Err(error) => format!("{error} {error:?}"),
            Ok(config) => format!("{config:?} {:?}", config.postgres().err()),
        };
        assert!(!shown.contains(secret), "{text:?} gives {shown}");
    }
}

#[test]
fn a_file_that_is_not_toml_is_named_with_the_line() {
    let got = refusal("[relay]\nmax_rows = 5\nmax_age = '1s\n", &[]);
    assert!(got.starts_with("pillarbox.toml, line 3: "), "{got}");
}

#[test]
fn a_named_file_that_is_missing_is_an_error() {
    let missing = Path::new("/nonexistent/pillarbox.toml");
    let got = Config::load(Some(missing), [])
        .expect_err("missing")
        .to_string();
    assert!(got.contains("/nonexistent/pillarbox.toml"), "{got}");
}

#[test]
fn the_console_listens_where_it_is_told_or_nowhere() {
    let listen = |value: &str| {
        let config = read(&format!("[console]\nlisten = '{value}'"), &[]).expect(value);
        config.console.listen.expect("one").to_string()
    };
    assert_eq!(read("", &[]).expect("defaults").console.listen, None);
    for given in ["127.0.0.1:9187", "localhost:0", "[::1]:80", "off"] {
        assert_eq!(listen(given), given);
    }
    assert_eq!(listen(""), "off");
    let off = ("PILLARBOX_CONSOLE__LISTEN", "off");
    let config = read("[console]\nlisten = '0.0.0.0:1'", &[off]).expect("off");
    assert_eq!(config.console.listen, Some(Listen::Off));
    for bad in [
        "9187",
        "host",
        ":9187",
        "::1:80",
        "host:99999",
        "http://host:80/",
    ] {
        let text = refusal(&format!("[console]\nlisten = '{bad}'"), &[]);
        assert!(text.contains("is no address to listen on"), "{text}");
    }
}

proptest! {
    /// Lines of any order, half of them broken: a configuration or an error, and no secret in either.
    #[test]
    fn no_text_makes_it_panic_or_shows_a_secret(
        lines in proptest::collection::vec(prop_oneof![
            Just("[postgres]".to_owned()),
            Just("url = \"postgresql://u:hunter2-hunter2@h/d\"".to_owned()),
            Just("[sinks.main]".to_owned()),
            Just("url = [\"http://u:hunter2-hunter2@h:8123/d\", \"https://h\"]".to_owned()),
            Just("url = \"ftp://u:hunter2-hunter2@h:99999/d\"".to_owned()),
            Just("password = \"hunter2-hunter2\"".to_owned()),
            Just("password = [\"hunter2-hunter2\"]".to_owned()),
            Just("pass_word = \"hunter2-hunter2\"".to_owned()),
            Just("[relay]".to_owned()),
            "(max_rows|max_bytes|max_age|in_flight) = [-'\"0-9a-zA-Z]{1,8}",
            ".{0,20}",
        ], 0..8),
    ) {
        let shown = match read(&lines.join("\n"), &[]) {
            Ok(config) => format!("{config:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn an_intake_is_checked_and_its_url_may_come_from_the_environment() {
    const TWO: &str = "[intake.a]\nkind = 'redis-list'\nkey = 'a'\nurl = 'redis://:hidden@one'\n\
                       [intake.b]\nkind = 'redis-stream'\nkey = 'b'\nmax_age = '50ms'\n";
    let url = |config: &Config, name: &str| {
        let url = config.intake[name].url.as_ref();
        url.map(|url| url.expose_secret().to_owned())
    };
    let from_environment = [("REDIS_URL", "redis://two")];
    let config = read(TWO, &from_environment).unwrap();
    assert_eq!(url(&config, "a").as_deref(), Some("redis://:hidden@one"));
    assert_eq!(url(&config, "b").as_deref(), Some("redis://two"));
    assert!(!format!("{config:?}").contains("hidden"));
    let (one, _) = TWO.split_once("[intake.b]").unwrap();
    let config = read(one, &from_environment).unwrap();
    assert_eq!(
        url(&config, "a").as_deref(),
        Some("redis://two"),
        "the only one"
    );
    // Other commands work without the address.
    let config = read(&TWO.replace("url =", "#"), &[]).unwrap();
    let missing = config.intake["a"].client("a").unwrap_err().to_string();
    assert_eq!(
        missing,
        "intake.a.url is missing; write redis://host:6379, or set REDIS_URL"
    );
    for (from, to, expected) in [
        (
            "kind = 'redis-list'",
            "",
            "intake.a.kind is missing; write redis-stream or redis-list",
        ),
        (
            "redis-list",
            "list",
            "\"list\" is not known here; write redis-stream or redis-list",
        ),
        ("key = 'a'", "", "intake.a.key is missing"),
        (
            "max_age",
            "max_aeg",
            "unknown key intake.b.max_aeg in pillarbox.toml; did you mean max_age?",
        ),
        (
            "'50ms'",
            "'2h'",
            "intake.b.max_age is 7200s; give it 1ms to 3600s",
        ),
        (
            "redis://:hidden@one",
            "http://:hidden@one",
            "intake.a.url cannot be read",
        ),
        ("[intake.b]", "[intake.B]", "\"B\" cannot name an intake"),
    ] {
        let error = read(&TWO.replacen(from, to, 1), &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("hidden"), "{error}");
    }
}

#[test]
fn a_computed_column_or_a_path_that_cannot_be_says_what_to_write() {
    for (line, says) in [
        ("columns.a = ''", "an expression is empty"),
        (
            "columns.a = {expression = '1', volatile = true}",
            "needs missing",
        ),
        (
            "columns.a = {expression = '1', missing = 'later'}",
            "dead-letter or wait",
        ),
        (
            "columns.a = {expresion = '1'}",
            "write an expression as text",
        ),
        ("columns.a = 1", "write an expression as text"),
        ("redact = ['a..b']", "empty key"),
        ("redact = [1]", "write a path as"),
    ] {
        let refused = refusal(&format!("[sinks.clickhouse]\n{line}\n"), &[]);
        assert!(refused.contains(says), "{line}: {refused}");
        assert!(refused.contains("sinks.clickhouse."), "{line}: {refused}");
    }
    let text = "[sinks.clickhouse]\ncolumns.a = '1'\nredact = ['a.b', ['c.d']]\n";
    let sink = &read(text, &[]).expect("both ways").sinks["clickhouse"];
    assert_eq!((sink.columns.len(), sink.redact.len()), (1, 2));
}
