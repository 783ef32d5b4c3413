//! Mutexes of short critical sections, which leave nothing half done.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks it, whether or not somebody panicked meanwhile.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
