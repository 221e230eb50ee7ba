//! The binary `pillarbox`.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    pillarbox_cli::main(std::env::args_os())
}
