//! Telling tasks to stop, and hearing the signals that say so.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Tells everyone who holds the [`Shutdown`] to stop. Dropping it does the same.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Hears it. Clones hear the same.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and what it triggers.
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Tells everyone.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Returns when it is time to stop.
    pub async fn wait(&mut self) {
        // An error means that the trigger is gone, which is a reason to stop too.
        self.0.wait_for(|stop| *stop).await.ok();
    }
}

/// Returns at the next SIGTERM or SIGINT, with its name.
pub async fn signalled() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}
