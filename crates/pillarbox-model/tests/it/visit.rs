//! Visits the states of a model, all of them or until one is wrong.

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

/// Visits every state that can be reached, and fails with the way to one that breaks a property.
pub(crate) fn holds_in_every_state<M>(model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    println!(
        "{} states, {} steps between them, at most {} one after the other",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth() - 1
    );
    checker.assert_properties();
}

/// A short way to a state that breaks `property`; fails when there is none.
pub(crate) fn breaks<M>(model: M, property: &'static str) -> Vec<M::Action>
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AllOf([property].into()))
        .spawn_bfs()
        .join();
    let way = checker
        .discovery(property)
        .unwrap_or_else(|| {
            panic!("nothing breaks {property:?}: what was switched off is not needed")
        })
        .into_actions();
    println!("{property:?} is broken by:");
    for step in &way {
        println!("  {step:?}");
    }
    way
}
