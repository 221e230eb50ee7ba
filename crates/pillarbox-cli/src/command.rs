//! The subcommands, one file each.

pub(crate) mod bench;
pub(crate) mod columns;
pub(crate) mod dead_letters;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod grant;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod intake;
pub(crate) mod migrate;
pub(crate) mod pause;
pub(crate) mod publish;
pub(crate) mod recover;
pub(crate) mod relay;
pub(crate) mod replay;
pub(crate) mod settings;
pub(crate) mod sink;
pub(crate) mod status;
pub(crate) mod uninstall;
pub(crate) mod verify;
