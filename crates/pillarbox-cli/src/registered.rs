//! The registered sink that a command is about.

use pillarbox_relay::schema::registry::{self, Registration};
use tokio_postgres::Client;

use crate::exit::Failure;

/// The sink of this name, or the only one.
pub(crate) async fn find(client: &Client, name: Option<&str>) -> Result<Registration, Failure> {
    if let Some(name) = name {
        return Ok(registry::find(client, name).await?);
    }
    let sinks = registry::list(client).await?;
    let mut sinks: Vec<Registration> = sinks.into_iter().filter(|sink| !sink.retired).collect();
    match sinks.len() {
        0 => Err(Failure::refused(
            "no sink is registered; run: pillarbox sink create",
        )),
        1 => Ok(sinks.remove(0)),
        _ => {
            let names: Vec<&str> = sinks.iter().map(|sink| sink.name.as_str()).collect();
            Err(Failure::usage(format!(
                "several sinks are registered: say which, {}",
                names.join(" or ")
            )))
        }
    }
}
