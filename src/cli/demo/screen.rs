//! The demo's live view: a few lines that change, or a line every few seconds without a terminal.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;

use crate::cli::terminal;
use crate::{
    agent::AgentView, backend::Running, clock, config::Config, forward::ForwardStatus,
    queue::QueueStatus, units,
};

/// The live view.
pub struct Screen {
    bars: MultiProgress,
    backend: ProgressBar,
    queue: ProgressBar,
    pushes: ProgressBar,
    collectors: ProgressBar,
    address: String,
    back_at: Option<Instant>,
    plain: Option<Instant>,
}

const REFRESH: Duration = Duration::from_millis(250);
/// Without a terminal: one line in this time.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

impl Screen {
    /// Prints where things are, and begins the view.
    pub fn new(dir: &Path, config: &Config, backend: &Running) -> Self {
        if let Some(page) = backend.page_address() {
            terminal::note(&format!("page       http://{page}/"));
        }
        terminal::note(&format!("directory  {}", dir.display()));
        terminal::note(&format!("log        {}", dir.join("demo.log").display()));
        if config.collectors.pg_stats.is_none() {
            terminal::note("postgres   none on the usual socket; set DATABASE_URL to name one");
        }
        terminal::note("Ctrl-C ends the demo\n");
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let line = |name: &'static str| {
            let style = ProgressStyle::with_template("{prefix:<10} {wide_msg}");
            let bar = bars.add(ProgressBar::no_length().with_prefix(name));
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        };
        Self {
            backend: line("backend"),
            queue: line("queue"),
            pushes: line("pushes"),
            collectors: line("collectors"),
            address: format!("https://localhost:{}", backend.address().port()),
            back_at: None,
            plain: (!console_is_terminal()).then(clock::monotonic),
            bars,
        }
    }

    /// Says that the backend is gone for `outage`.
    pub fn backend_is_away(&mut self, outage: Duration) {
        self.back_at = Some(clock::monotonic() + outage);
        self.note(&format!("the backend goes away for {}", units::show_duration(outage)));
    }

    /// Says that the backend is there again.
    pub fn backend_is_back(&mut self) {
        self.back_at = None;
        self.note("the backend is back");
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        if self.plain.is_some() {
            terminal::note(text);
        } else {
            // A terminal that is gone has nobody to tell.
            self.bars.println(text).ok();
        }
    }

    /// Refreshes the view until `end` or until `over`, whichever is first; gives what `over` gave,
    /// `false` at `end`.
    pub async fn watch(
        &mut self,
        view: &AgentView,
        end: Option<Instant>,
        over: impl Future<Output = bool>,
    ) -> bool {
        tokio::pin!(over);
        loop {
            self.refresh(view).await;
            if end.is_some_and(|end| clock::monotonic() >= end) {
                return false;
            }
            tokio::select! {
                over = &mut over => return over,
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
    }

    /// Leaves the last state on the screen.
    pub fn end(&self) {
        for bar in [&self.backend, &self.queue, &self.pushes, &self.collectors] {
            bar.abandon();
        }
    }

    async fn refresh(&mut self, view: &AgentView) {
        let Ok(queue) = view.queue.status().await else { return };
        let now = clock::now();
        let queue_text = show_queue(&queue, now);
        let pushes_text = show_pushes(&view.forward.borrow(), now);
        let backend_text = match self.back_at {
            None => format!("up at {}", self.address),
            Some(at) => {
                let left = at.saturating_duration_since(clock::monotonic());
                format!("AWAY, back in {}", units::show_duration(left))
            }
        };
        if let Some(last) = self.plain {
            if last.elapsed() >= PLAIN_EVERY {
                self.plain = Some(clock::monotonic());
                terminal::note(&format!(
                    "backend {backend_text} | queue {queue_text} | pushes {pushes_text}"
                ));
            }
            return;
        }
        let collectors: Vec<String> = view
            .collections
            .snapshot()
            .into_iter()
            .map(|(name, status)| match status.error {
                None => format!("{name} {}", status.metrics),
                Some(error) => format!("{name}: {}", error.lines().next().unwrap_or_default()),
            })
            .collect();
        self.backend.set_message(backend_text);
        self.queue.set_message(queue_text);
        self.pushes.set_message(pushes_text);
        self.collectors.set_message(collectors.join(" | "));
    }
}

fn show_queue(queue: &QueueStatus, now: Timestamp) -> String {
    let oldest = queue.oldest_at.map_or_else(String::new, |oldest| {
        let age = Duration::try_from(now.duration_since(oldest)).unwrap_or_default();
        format!(", oldest {}", units::show_duration(age))
    });
    format!(
        "segments {}, batches {}, records {}, on disk {}{oldest}",
        queue.segments,
        queue.batches,
        queue.records,
        units::show_size(queue.disk_bytes)
    )
}

fn show_pushes(status: &ForwardStatus, now: Timestamp) -> String {
    let next = status.next_try_at.map_or_else(String::new, |at| {
        let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
        format!(", next try in {}", units::show_duration(wait))
    });
    let answer = status.last_answer.as_deref().unwrap_or("none yet");
    format!(
        "batches {}, records {}, sent {}; last answer: {}{next}",
        status.delivered_batches,
        status.delivered_records,
        units::show_size(status.sent_bytes),
        answer.lines().next().unwrap_or_default()
    )
}

fn console_is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdout())
}
