//! `pillarbox import`: publishes the lines of files.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use pillarbox_relay::intake::import::{Import as Job, Imported, Input, Raw};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::relay::signals;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::plural;
use crate::{Place, output};

/// Publish the events of NDJSON files, each line exactly once
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is a JSON object with event_type and event_context, and if you like event_id, event_date_time,
environment, metadata_version and trace_parent. gzip and zstd are recognised. What is no event becomes a dead letter.

An import that was interrupted goes on where it was when it is run again with the same file, which its first line
tells, or the --name; a file that has grown goes on behind its old end. A file that has changed is refused.

Examples:
  pillarbox import events.ndjson.gz
  pillarbox import january.ndjson february.ndjson.zst --strict
  pillarbox import --dry-run events.ndjson
  zcat *.gz | pillarbox import - --name history")]
pub(crate) struct Import {
    /// Files, or - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Name of the import: a lower-case word [default: given by the first line]
    #[arg(long)]
    name: Option<String>,

    /// Stop at a line that is no event, before anything of its batch
    #[arg(long)]
    strict: bool,

    /// Read everything and write nothing
    #[arg(long)]
    dry_run: bool,
}

impl Import {
    pub(crate) async fn run(self, place: &Place) -> Outcome {
        if self.name.is_some() && self.files.len() > 1 {
            return Err(Failure::usage(
                "one name is for one file; import them one by one, or without --name",
            ));
        }
        if let Some(name) = &self.name
            && !is_word(name)
        {
            return Err(Failure::usage(format!(
                "{name:?} cannot name an import; use a lower-case word of at most 32 letters, digits, \
                 - and _"
            )));
        }
        let stop = CancellationToken::new();
        let second = signals(stop.clone())?;
        tokio::select! { biased;
            outcome = self.work(place, &stop) => outcome,
            () = second => Err(Failure::failed(anyhow::anyhow!(
                "stopped at once by a second signal; run it again to go on"
            ))),
        }
    }

    async fn work(&self, place: &Place, stop: &CancellationToken) -> Outcome {
        let mut exit = Exit::Done;
        for file in &self.files {
            let began = Instant::now();
            let path = file.display().to_string();
            let (input, size) = self.input(&path)?;
            let bar = bar(size);
            let show = |imported: &Imported, raw: &Raw| {
                bar.set_position(raw.bytes());
                bar.set_message(plural(imported.lines, "line"));
            };
            let job = Job {
                name: self.name.clone(),
                is_strict: self.strict,
            };
            let done = match self.dry_run {
                true => job.try_out(input, show).await,
                false => {
                    let target = place.config()?.postgres()?;
                    job.run(input, &target, stop, show).await
                }
            };
            bar.finish_and_clear();
            let imported = done.map_err(|error| Failure::from(error).of(path.clone()))?;
            self.report(place, &path, &imported, began.elapsed())?;
            if imported.is_stopped {
                return Err(Failure::failed(anyhow::anyhow!(
                    "stopped; run it again to go on behind line {}",
                    imported.lines_before + imported.lines
                )));
            }
            if imported.dead > 0 && (self.dry_run || self.strict) {
                exit = Exit::Refused;
            }
        }
        Ok(exit)
    }

    /// The bytes of a file, and how many there are.
    fn input(&self, path: &str) -> Result<(Input, Option<u64>), Failure> {
        if path == "-" {
            let input = Input {
                path: "standard input".to_owned(),
                from: Box::new(std::io::stdin()),
                is_resumable: false,
            };
            return Ok((input, None));
        }
        let refuse = |error: std::io::Error| {
            let error = anyhow::Error::from(error).context(format!("{path} cannot be read"));
            Failure::new(Exit::Usage, error)
        };
        let file = File::open(path).map_err(refuse)?;
        let about = file.metadata().map_err(refuse)?;
        if about.is_dir() {
            return Err(Failure::usage(format!(
                "{path} is a directory; name its files"
            )));
        }
        let input = Input {
            path: path.to_owned(),
            from: Box::new(file),
            // A pipe gives its bytes once.
            is_resumable: about.is_file(),
        };
        Ok((input, about.is_file().then_some(about.len())))
    }

    fn report(
        &self,
        place: &Place,
        path: &str,
        imported: &Imported,
        took: Duration,
    ) -> Result<(), Failure> {
        let Imported {
            name,
            lines,
            lines_before,
            taken,
            dead,
            first_dead,
            bytes,
            ..
        } = imported;
        if place.json {
            let first = first_dead
                .as_ref()
                .map(|(line, reason)| json!({ "line": line, "reason": reason }));
            return output::line(json!({
                "file": path, "name": name, "lines": lines, "lines_before": lines_before,
                "taken": taken, "dead": dead, "first_dead": first, "bytes": bytes,
                "took_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                "dry_run": self.dry_run, "stopped": imported.is_stopped,
            }));
        }
        let done = if self.dry_run { "would take" } else { "took" };
        let again = match lines_before {
            0 => String::new(),
            n => format!(" (and {} earlier)", plural(*n, "line")),
        };
        let events = plural(*taken, "event");
        output::line(format!(
            "{done} {events} from {path}, {} lines{again}",
            lines
        ))?;
        if let Some((line, reason)) = first_dead {
            output::line(format!(
                "{dead} are no events, the first in line {line}: {reason}"
            ))?;
            if !self.dry_run {
                output::next("see: pillarbox dead-letters list");
            }
        }
        Ok(())
    }
}

fn is_word(name: &str) -> bool {
    let of_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 32
        && name.chars().all(of_word)
}

fn bar(size: Option<u64>) -> ProgressBar {
    let template = match size {
        Some(_) => "{bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left, {msg}",
        None => "{spinner} {bytes}, {bytes_per_sec}, {msg}",
    };
    output::bar(size, template)
}
