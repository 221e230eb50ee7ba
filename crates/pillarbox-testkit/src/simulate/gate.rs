//! Freezes a task as SIGSTOP does: it is not polled while the world goes on.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Holds a task. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<Mutex<Shut>>);

#[derive(Debug, Default)]
struct Shut {
    is_shut: bool,
    waker: Option<Waker>,
}

impl Gate {
    pub(super) fn shut(&self) {
        self.state().is_shut = true;
    }

    pub(super) fn open(&self) {
        let waker = {
            let mut state = self.state();
            state.is_shut = false;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn is_shut(&self) -> bool {
        self.state().is_shut
    }

    /// Runs `inner` while the gate is open.
    pub(super) fn through<F: Future + Send>(&self, inner: F) -> Through<F> {
        Through {
            gate: self.clone(),
            inner: Box::pin(inner),
        }
    }

    fn state(&self) -> MutexGuard<'_, Shut> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A future behind a gate.
pub(super) struct Through<F> {
    gate: Gate,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Through<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = self.gate.state();
            if state.is_shut {
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.inner.as_mut().poll(context)
    }
}
