//! The progress bar on a terminal, with the tenants that are being worked on below it.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use herder::store::view::JobView;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::words::{between, duration, worker};

/// How many tenants in progress are shown: what fits below a bar without scrolling it away.
pub(crate) const SHOWN: usize = 8;

/// The bar that stands on the terminal now, if any. There is one terminal, so there is one bar.
static STANDING: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Writes to stderr without tearing a bar that stands there.
pub(crate) fn aside(write: impl FnOnce()) {
    let standing = STANDING.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match standing {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

/// A bar. Dropping it takes it off the terminal.
#[derive(Debug)]
pub(crate) struct Bar {
    bars: MultiProgress,
    main: ProgressBar,
    tenants: Vec<ProgressBar>,
}

impl Bar {
    /// Whether stderr can show one: it is a terminal that can take back what it wrote, which one without a name cannot.
    pub(crate) fn can_stand() -> bool {
        !ProgressDrawTarget::stderr().is_hidden()
    }

    /// A bar for so many tenants.
    pub(crate) fn new(total: usize) -> Self {
        let bars = MultiProgress::new();
        let main = bars.add(ProgressBar::new(total as u64).with_style(style(
            "{bar:32.green/dim} {pos}/{len} tenants, {msg} [{elapsed}, {eta} left]",
        )));
        *STANDING.lock().unwrap_or_else(PoisonError::into_inner) = Some(bars.clone());
        Self {
            bars,
            main,
            tenants: Vec::new(),
        }
    }

    /// Shows where the run stands. `now` is the control database's time, as those of the jobs are.
    pub(crate) fn show(&mut self, settled: usize, message: String, running: &[JobView], now: DateTime<Utc>) {
        while self.tenants.len() > running.len() {
            if let Some(bar) = self.tenants.pop() {
                bar.finish_and_clear();
                self.bars.remove(&bar);
            }
        }
        while self.tenants.len() < running.len() {
            let bar = ProgressBar::no_length().with_style(style("{wide_msg}"));
            self.tenants.push(self.bars.add(bar));
        }
        for (bar, job) in self.tenants.iter().zip(running) {
            bar.set_message(in_progress(job, now));
        }
        self.main.set_message(message);
        self.main.set_position(settled as u64);
        self.main.tick();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        STANDING.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nothing to be done about a terminal that is gone.
        let _ = self.bars.clear();
    }
}

fn in_progress(job: &JobView, now: DateTime<Utc>) -> String {
    let since = job
        .claimed_at
        .map(|at| duration(between(at, now)))
        .unwrap_or_default();
    let step = job.step.as_deref().unwrap_or_default();
    let worker = job.worker.as_deref().map(worker).unwrap_or_default();
    format!("  {since:>9}  {:24} {step:10} {worker}", job.tenant)
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file, and a test renders them.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
