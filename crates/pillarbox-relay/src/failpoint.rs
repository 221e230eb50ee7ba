//! The steps of the delivery path at which a test may end the process as `kill -9` would.
//!
//! Without the feature `failpoints` a step is nothing.

/// Every step, in the order of the path. A test kills a relay at each of them under load.
pub const STEPS: [&str; 15] = [
    "took-over",
    "probed",
    "read",
    "seal-inserted",
    "sealed",
    "before-send",
    "block-answered",
    "before-confirm",
    "confirmed",
    "ring-turned",
    "leaf-checked",
    "leaf-locked",
    "leaf-checked-again",
    "leaf-truncated",
    "leaf-emptied",
];

/// Every step of a recovery, in its order.
pub const RECOVERY_STEPS: [&str; 4] = [
    "recover-locked",
    "recover-published",
    "recover-written",
    "recover-committed",
];

/// Every step of an intake and of an import, in their order.
pub const INTAKE_STEPS: [&str; 8] = [
    "intake-locked",
    "intake-renamed",
    "intake-recorded",
    "intake-read",
    "intake-written",
    "intake-committed",
    "intake-deleted",
    "import-committed",
];

/// Names a step of [`STEPS`], of [`RECOVERY_STEPS`] or of [`INTAKE_STEPS`].
macro_rules! step {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        fail::fail_point!($name, |_| $crate::failpoint::die());
    };
}
pub(crate) use step;

/// Ends the process without giving it a chance to notice.
#[cfg(feature = "failpoints")]
pub fn die<T>() -> T {
    let me = rustix::process::getpid();
    loop {
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        std::thread::park();
    }
}
