//! Following a run: reading what happened since the last look, and telling it.

mod screen;
mod unserved;

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use herder::{
    domain::{
        job::JobState,
        run::{RunId, RunState, short},
    },
    store::{
        self, StoreError, run,
        view::{self, RunView, Tally},
    },
};
use sqlx::PgPool;

use self::screen::Screen;
pub(crate) use self::unserved::{warn_of_unended, warn_of_unserved};
use crate::{
    control, hint, output,
    render::{
        events::Story,
        progress::SHOWN,
        summary,
        words::{between, count},
    },
};

/// How often to look. A person sees no difference below, and a control database with many watchers does.
const POLL: Duration = Duration::from_millis(300);

/// How often to glance at the run's state between two looks, which is one row: a command that waits ends with its run.
const GLANCE: Duration = Duration::from_millis(40);

/// How rarely to look at most, however long a look takes.
const MAX_POLL: Duration = Duration::from_secs(5);

/// How far back a look reaches behind the newest event: transactions do not commit in the order of their clocks.
const OVERLAP: TimeDelta = TimeDelta::seconds(2);

/// How long nothing may happen before we look whether there is any worker.
const QUIET: Duration = Duration::from_secs(3);

/// How long the control database takes to answer that was away meanwhile.
const HANG: Duration = Duration::from_secs(1);

/// How long workers are given to say that they live, once the control database is back from where nobody could.
const RETURN: Duration = Duration::from_secs(15);

/// How following ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The run is over, or halted, and nothing of it runs any more.
    Over(RunView),
    /// We were told to stop.
    Stopped,
    /// No tenant was settled for as long as we were to wait for that.
    Stalled,
}

/// Follows one run.
#[derive(Debug)]
pub(crate) struct Follower {
    pool: PgPool,
    run: RunId,
    screen: Screen,
    /// Whether this process does the work, too.
    local: bool,
    /// None before the first look.
    story: Option<Story>,
    /// What was told of the run as a whole.
    state: RunState,
    wave: i32,
    /// When following began, if only what comes then counts.
    since: Option<DateTime<Utc>>,
    /// When something last happened.
    stirred: Instant,
    warned: bool,
    away: bool,
    /// When the control database last answered that had not done so for a while.
    returned: Option<Instant>,
    /// How the jobs succeeded, as of the last look.
    tally: Tally,
    /// How long to wait for a tenant to be settled.
    patience: Option<Duration>,
    /// When one was last settled, or the run last began to run, and how many were settled then.
    progressed: Instant,
    settled: i64,
}

impl Follower {
    /// Follows a run whose lines are data: `herder watch`.
    pub(crate) fn to_stdout(pool: PgPool, run: RunId) -> Self {
        Self::new(pool, run, Screen::of_stdout())
    }

    /// Follows a run beside a command whose data is something else.
    pub(crate) fn to_stderr(pool: PgPool, run: RunId) -> Self {
        Self::new(pool, run, Screen::of_stderr())
    }

    fn new(pool: PgPool, run: RunId, screen: Screen) -> Self {
        Self {
            pool,
            run,
            screen,
            local: false,
            story: None,
            state: RunState::Running,
            wave: 0,
            since: None,
            stirred: Instant::now(),
            warned: false,
            away: false,
            returned: None,
            tally: Tally::default(),
            patience: None,
            progressed: Instant::now(),
            settled: 0,
        }
    }

    /// Waits no longer than this for a tenant to be settled.
    pub(crate) fn patience(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
        self
    }

    /// This process does the work, too: there is a worker, whatever the table says.
    pub(crate) fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// Passes over all that happened so far. `retry`: what failed is about to be taken up again.
    pub(crate) async fn skip_past(&mut self, retry: bool) -> anyhow::Result<()> {
        let run = control::view_run(&self.pool, self.run).await?;
        let mut story = self.begin(&run).await?;
        for event in view::events(&self.pool, self.run, None).await? {
            story.tell(&event);
        }
        if retry {
            story.reopen_failed();
        }
        self.wave = run.wave;
        self.since = Some(store::now(&self.pool).await?);
        self.story = Some(story);
        Ok(())
    }

    /// Follows the run until it is over, or until told to stop. A control database that is away is waited for.
    pub(crate) async fn follow(&mut self, stop: impl Future<Output = ()>) -> anyhow::Result<End> {
        tokio::pin!(stop);
        loop {
            let started = Instant::now();
            let over = tokio::select! {
                over = self.look_or_wait() => over?,
                () = &mut stop => return self.stopped().await,
            };
            if let Some(run) = over {
                return Ok(End::Over(run));
            }
            if self
                .patience
                .is_some_and(|limit| self.progressed.elapsed() > limit)
            {
                self.screen.take_down();
                return Ok(End::Stalled);
            }
            // Whoever counts a hundred thousand jobs does it less often.
            let pause = (started.elapsed() * 4).clamp(POLL, MAX_POLL);
            tokio::select! {
                () = self.rest(pause) => {}
                () = &mut stop => return self.stopped().await,
            }
        }
    }

    /// Waits until it is time to look again, or there is something to see. Never longer: a control database that is away
    /// lets a glance wait, and it is the look that says so.
    async fn rest(&self, pause: Duration) {
        let changed = async {
            loop {
                tokio::time::sleep(GLANCE).await;
                let state = run::state(&self.pool, self.run).await;
                if state.is_ok_and(|state| state != self.state) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(pause, changed).await;
    }

    /// Told to stop: the last thing that happened may have been the end of the run.
    async fn stopped(&mut self) -> anyhow::Result<End> {
        let over = match tokio::time::timeout(Duration::from_secs(2), self.look()).await {
            Ok(Ok(over)) => over,
            _ => None,
        };
        self.screen.take_down();
        Ok(over.map_or(End::Stopped, End::Over))
    }

    async fn look_or_wait(&mut self) -> anyhow::Result<Option<RunView>> {
        match self.look().await {
            Err(error) if error.downcast_ref().is_some_and(StoreError::is_away) => {
                if !std::mem::replace(&mut self.away, true) {
                    output::warning("the control database is unavailable; waiting for it");
                }
                Ok(None)
            }
            looked => looked,
        }
    }

    /// One look. Some: the run is over.
    async fn look(&mut self) -> anyhow::Result<Option<RunView>> {
        // The run first: what is over by now has all its events by now.
        let asked = Instant::now();
        let run = control::view_run(&self.pool, self.run).await?;
        if self.away || asked.elapsed() > HANG {
            self.returned = Some(Instant::now());
        }
        if std::mem::take(&mut self.away) {
            output::say("The control database is available again");
        }
        if self.story.is_none() {
            let story = self.begin(&run).await?;
            if let Some(line) = story.opening() {
                self.screen.tell(&line.to_string(), line.stays())?;
            }
            self.story = Some(story);
        }
        let newest = self.story.as_ref().and_then(Story::newest);
        self.tell_events(&run, newest.map(|at| at - OVERLAP)).await?;
        self.tell_run(&run)?;
        self.note_progress(&run);
        // What a lost worker held stays as it is where there is no other.
        let is_ending = matches!(run.state, RunState::Halted | RunState::Cancelled);
        if is_over(&run) || is_ending && self.has_no_worker().await? {
            // Whatever committed so late that no look saw it.
            self.tell_events(&run, None).await?;
            self.tally = view::tally(&self.pool, self.run).await?;
            self.screen.take_down();
            return Ok(Some(run));
        }
        self.show(&run).await?;
        self.warn_without_worker(&run).await?;
        Ok(None)
    }

    /// Whether no worker is there, as far as can be told: none can have renewed its lease while the control database was away.
    async fn has_no_worker(&self) -> Result<bool, StoreError> {
        Ok(!self.is_back_just_now() && view::workers(&self.pool).await?.alive() == 0)
    }

    fn is_back_just_now(&self) -> bool {
        self.returned.is_some_and(|at| at.elapsed() < RETURN)
    }

    /// A tenant that is tried again and again is no progress; a run that is paused makes none, and that is well.
    fn note_progress(&mut self, run: &RunView) {
        if run.settled() != self.settled || run.state != RunState::Running {
            (self.settled, self.progressed) = (run.settled(), Instant::now());
        }
    }

    async fn begin(&self, run: &RunView) -> Result<Story, StoreError> {
        let tally = view::tally(&self.pool, self.run).await?;
        let size = |n: i64| usize::try_from(n).unwrap_or_default();
        Ok(Story::new(
            size(run.tenants.into()),
            size(tally.settled_at_enqueue),
        ))
    }

    async fn tell_events(&mut self, run: &RunView, since: Option<DateTime<Utc>>) -> anyhow::Result<()> {
        for event in view::events(&self.pool, self.run, since).await? {
            self.tell_wave(event.wave, run.waves)?;
            if let Some(line) = self.story.as_mut().and_then(|story| story.tell(&event)) {
                self.stirred = Instant::now();
                self.screen.tell(&line.to_string(), line.stays())?;
            }
        }
        Ok(())
    }

    /// That a wave was opened, before anything is told of its tenants.
    fn tell_wave(&mut self, wave: i32, waves: i32) -> anyhow::Result<()> {
        if wave <= self.wave {
            return Ok(());
        }
        self.wave = wave;
        self.stirred = Instant::now();
        self.screen
            .tell(&format!("{:>12} {} of {waves} is open", "WAVE", wave + 1), true)
    }

    /// What happened to the run as a whole.
    fn tell_run(&mut self, run: &RunView) -> anyhow::Result<()> {
        self.tell_wave(run.wave, run.waves)?;
        let id = short(&run.id);
        let mut lines = Vec::new();
        let still = match run.count(JobState::Running) {
            0 => String::new(),
            n => format!("; {} still running", count(n, "tenant")),
        };
        if run.state != self.state {
            match run.state {
                RunState::Paused => lines.push(hint::complete(&format!(
                    "{:>12} by an operator{still}; `herder resume {id}` continues the run",
                    "PAUSED"
                ))),
                RunState::Halted => lines.push(format!(
                    "{:>12} {}{still}",
                    "HALTED",
                    run.reason.as_deref().unwrap_or("by its failure limit")
                )),
                RunState::Cancelled => lines.push(format!("{:>12} by an operator{still}", "CANCELLED")),
                RunState::Running => lines.push(format!("{:>12} by an operator", "RESUMED")),
                RunState::Succeeded | RunState::Failed => {}
            }
            self.state = run.state;
        }
        for line in lines {
            self.stirred = Instant::now();
            self.screen.tell(&line, true)?;
        }
        Ok(())
    }

    /// Brings the bar up to date.
    async fn show(&mut self, run: &RunView) -> anyhow::Result<()> {
        let Some(story) = &self.story else {
            return Ok(());
        };
        let Some(bar) = self.screen.bar(story.total()) else {
            return Ok(());
        };
        let running = match run.count(JobState::Running) {
            0 => vec![],
            _ => view::jobs(&self.pool, self.run, Some(JobState::Running), Some(SHOWN as i64)).await?,
        };
        let now = store::now(&self.pool).await?;
        let mut message = format!(
            "{} failed, {} running",
            run.count(JobState::Failed),
            run.count(JobState::Running)
        );
        if run.waves > 1 {
            message += &format!(", wave {} of {}", run.wave + 1, run.waves);
        }
        if run.state != RunState::Running {
            message += &format!(", {}", run.state);
        }
        bar.show(story.settled(), message, &running, now);
        Ok(())
    }

    /// The most common reason for a run that does not move.
    async fn warn_without_worker(&mut self, run: &RunView) -> anyhow::Result<()> {
        let is_quiet = self.stirred.elapsed() >= QUIET && !self.is_back_just_now();
        if self.local || self.warned || run.state != RunState::Running || !is_quiet {
            return Ok(());
        }
        self.stirred = Instant::now();
        self.warned = warn_of_unserved(&self.pool, run.id).await?;
        Ok(())
    }

    /// The block at the end: rule, summary, hints.
    pub(crate) async fn sum_up(&self, run: &RunView) -> anyhow::Result<()> {
        let since = self.since.unwrap_or(run.created_at);
        let until = match run.settled_at {
            Some(at) => at,
            // The run is over: a control database that is away by now must not make anything else of that.
            None => store::now(&self.pool).await.unwrap_or_else(|_| Utc::now()),
        };
        let text = summary::render(run, &self.tally, between(since, until));
        self.screen.sum_up(&text)
    }
}

/// Whether nothing will happen to the run by itself any more.
fn is_over(run: &RunView) -> bool {
    match run.state {
        RunState::Running | RunState::Paused => false,
        RunState::Succeeded | RunState::Failed => true,
        // What runs finishes, or is told to stop: only then is it known what became of it.
        RunState::Halted | RunState::Cancelled => run.count(JobState::Running) == 0,
    }
}

/// What was read. None: the control database cannot answer now, but may later.
pub(crate) fn unless_away<T>(read: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.downcast_ref().is_some_and(StoreError::is_away) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::summary::tests::run;

    #[test]
    fn a_halted_run_is_over_when_nothing_runs() {
        assert!(!is_over(&run(RunState::Halted, &[(JobState::Running, 1)])));
        assert!(is_over(&run(RunState::Halted, &[(JobState::Waiting, 1)])));
        assert!(!is_over(&run(RunState::Paused, &[])));
        assert!(is_over(&run(RunState::Failed, &[])));
    }

    #[test]
    fn only_what_may_pass_is_waited_for() {
        assert!(StoreError::Database(sqlx::Error::PoolTimedOut).is_away());
        assert!(!StoreError::Database(sqlx::Error::RowNotFound).is_away());
        assert!(!StoreError::Setup("no".into()).is_away());
    }
}
