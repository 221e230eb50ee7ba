//! The hosts of a connection, one by one: a host that takes a connection and then says nothing must
//! not use up the time of the others.

use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// One configuration for each host.
pub(super) fn each(config: &Config) -> Vec<Config> {
    let hosts = config.get_hosts();
    if hosts.len() <= 1 {
        return vec![config.clone()];
    }
    let (addresses, ports) = (config.get_hostaddrs(), config.get_ports());
    let mut each = Vec::new();
    for (position, host) in hosts.iter().enumerate() {
        let mut one = without_hosts(config);
        match host {
            Host::Tcp(name) => one.host(name),
            Host::Unix(path) => one.host_path(path),
        };
        if let Some(address) = addresses.get(position) {
            one.hostaddr(*address);
        }
        if let Some(port) = ports.get(position).or(ports.first()) {
            one.port(*port);
        }
        each.push(one);
    }
    each
}

fn without_hosts(config: &Config) -> Config {
    let mut one = Config::new();
    if let Some(user) = config.get_user() {
        one.user(user);
    }
    if let Some(password) = config.get_password() {
        one.password(password);
    }
    if let Some(name) = config.get_dbname() {
        one.dbname(name);
    }
    if let Some(options) = config.get_options() {
        one.options(options);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        one.tcp_user_timeout(*timeout);
    }
    one.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding());
    one
}
