//! `pillarbox init`: writes a configuration file.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use clap::Args;
use pillarbox_relay::config::FILE;

use crate::exit::{Exit, Failure, Outcome};
use crate::{Place, output};

const CONFIGURATION: &str = include_str!("pillarbox.toml");

/// Write a commented pillarbox.toml
#[derive(Debug, Args)]
#[command(after_help = "\
Every value in the file is commented out, so it changes nothing until you edit it.

Examples:
  pillarbox init                         writes ./pillarbox.toml
  pillarbox init --config /etc/pillarbox.toml")]
pub(crate) struct Init {
    /// Overwrite an existing file
    #[arg(long)]
    force: bool,
}

impl Init {
    pub(crate) fn run(self, place: &Place) -> Outcome {
        let path = place.config.clone().unwrap_or_else(|| PathBuf::from(FILE));
        let shown = path.display();
        let mut options = File::options();
        options.write(true);
        match self.force {
            true => options.create(true).truncate(true),
            false => options.create_new(true),
        };
        let written = options
            .open(&path)
            .and_then(|mut file| file.write_all(CONFIGURATION.as_bytes()));
        match written {
            Ok(()) => {
                output::line(format!("wrote {shown}"))?;
                output::next("set DATABASE_URL, then: pillarbox migrate");
                Ok(Exit::Done)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Failure::refused(
                format!("{shown} is there already; overwrite it with --force"),
            )),
            Err(error) => Err(Failure::failed(
                anyhow::Error::from(error).context(format!("{shown} cannot be written")),
            )),
        }
    }
}
