//! Several sinks of one outbox, each of which lacks other events.
