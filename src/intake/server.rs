//! Connections: how many, how long, and how they end.

use std::{io, path::Path, sync::Arc, time::Duration};

use axum::serve::Listener;
use http::{HeaderValue, header};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{
    IntakeConfig, IntakeView, Listen, Sink, places::Places, service::Service, stall::Impatient,
};
use crate::shutdown::Shutdown;
use crate::socket::{Peers, Socket};

/// Requests in the works at the end have so long to finish.
const GRACE: Duration = Duration::from_secs(3);
/// A place that cannot be had is tried again so often: somebody else's socket may go away.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// What a connection holds of what it has read: heads are smaller, bodies are read by such pieces.
const READ_BYTES_MAX: usize = 128 << 10;

/// The intake of one agent.
#[derive(Debug)]
pub struct Intake<S> {
    config: IntakeConfig,
    service: Arc<Service<S>>,
    view: IntakeView,
}

impl<S: Sink> Intake<S> {
    /// An intake that hands metrics to `sink`.
    pub fn new(config: IntakeConfig, sink: S) -> Self {
        Self::shown_in(IntakeView::default(), config, sink)
    }

    /// The same, which counts where an earlier one has counted.
    pub fn shown_in(view: IntakeView, config: IntakeConfig, sink: S) -> Self {
        let service = Arc::new(Service::new(sink, config.clone(), view.clone()));
        Self { config, service, view }
    }

    /// What can be asked of it.
    pub fn view(&self) -> IntakeView {
        self.view.clone()
    }

    /// Listens and answers until the shutdown; then what has begun is finished, within a bound. A
    /// place that cannot be had stops nothing else: it is said, and tried again.
    pub async fn run(self, mut shutdown: Shutdown) {
        let mut last_error = None;
        loop {
            let Err(error) = self.listen(&mut shutdown).await else { return };
            if last_error.as_ref() != Some(&error) {
                let listen = self.config.listen.to_string();
                tracing::error!(listen, error, "nobody can push to this agent");
            }
            self.view.listening(Err(error.clone()));
            last_error = Some(error);
            tokio::select! {
                () = shutdown.wait() => return,
                () = tokio::time::sleep(BIND_AGAIN) => {}
            }
        }
    }

    async fn listen(&self, shutdown: &mut Shutdown) -> Result<(), String> {
        match &self.config.listen {
            Listen::Unix(path) => {
                let group = self.config.group.as_deref().map(group_id).transpose()?;
                let bound = Socket::bind(path, Peers::Group(group)).await;
                let socket = bound.map_err(|error| error.to_string())?;
                self.listening(&self.config.listen);
                self.serve(socket, shutdown).await;
            }
            Listen::Tcp(address) => {
                let bound = TcpListener::bind(address).await;
                let failed = |error: io::Error| format!("{address}: {error}");
                let listener = bound.map_err(failed)?;
                self.listening(&Listen::Tcp(listener.local_addr().map_err(failed)?));
                self.serve(listener, shutdown).await;
            }
        }
        Ok(())
    }

    fn listening(&self, listen: &Listen) {
        let listen = listen.to_string();
        tracing::info!(listen, "the intake listens");
        self.view.listening(Ok(listen));
    }

    async fn serve<L: Listener>(&self, mut listener: L, shutdown: &mut Shutdown) {
        let graceful = GracefulShutdown::new();
        let places = Places::new(self.config.connections_max);
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                (stream, _) = listener.accept() => stream,
                Some(_) = connections.join_next() => continue,
                () = shutdown.wait() => break,
            };
            // The next ones wait in the kernel.
            let place = tokio::select! {
                place = places.take() => Arc::new(place),
                () = shutdown.wait() => break,
            };
            let (service, connected) = (Arc::clone(&self.service), self.view.connected());
            let at = Arc::clone(&place);
            let answer = service_fn(move |request| {
                let (service, work) = (Arc::clone(&service), at.begin());
                async move {
                    let mut answer = service.answer(request).await;
                    if work.is_last {
                        let close = HeaderValue::from_static("close");
                        answer.headers_mut().insert(header::CONNECTION, close);
                    }
                    Ok::<_, std::convert::Infallible>(answer)
                }
            });
            let stream = TokioIo::new(Impatient::new(stream, self.config.timeout));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.config.timeout)
                .max_buf_size(READ_BYTES_MAX)
                .half_close(true) // some clients end their side with their request
                .serve_connection(stream, answer);
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(%error, "intake: a connection ended");
                    },
                    () = place.taken_away() => tracing::debug!("intake: an idle one gave way"),
                }
                drop((place, connected));
            });
        }
        drop(listener);
        if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
            tracing::warn!("intake: requests were cut off by the shutdown, without an answer");
        }
    }
}

/// The number of a group that has a name or is one.
fn group_id(group: &str) -> Result<u32, String> {
    const GROUPS: &str = "/etc/group";
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs_err::read_to_string(Path::new(GROUPS)).map_err(|error| error.to_string())?;
    find_group(&groups, group).ok_or_else(|| {
        format!(
            "group {group:?} is not in {GROUPS}; hint: make it, or set intake.group to a number"
        )
    })
}

fn find_group(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_name() {
        let groups = "root:x:0:\nbroken\nodd:x:y:\nmetrics:x:990:a,b\n";
        let check = |name, expected| assert_eq!(find_group(groups, name), expected, "{name}");
        check("root", Some(0));
        check("metrics", Some(990));
        check("metric", None);
        check("broken", None);
        check("odd", None);
    }
}
