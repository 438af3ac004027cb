//! Work that goes on when its asker has gone.

use crate::backend::api::ApiError;

/// Does `work` whether its asker waits for it or not. What is begun on another thread goes on in
/// any case, and so must hold its room and its turn.
pub(in crate::backend) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::spawn(work).await.unwrap_or_else(|err| {
        tracing::error!(%err, "a request could not be worked on");
        Err(ApiError::internal())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{Semaphore, oneshot};

    use super::*;

    /// A request that times out, or whose sender goes, does not leave its turn to the next one
    /// while it is still worked on.
    #[tokio::test]
    async fn what_is_begun_holds_its_turn_to_the_end() {
        let turns = Arc::new(Semaphore::new(1));
        let turn = Arc::clone(&turns).acquire_owned().await.unwrap();
        let (begun, begins) = oneshot::channel();
        let (end, ends) = oneshot::channel::<()>();
        let work = to_its_end(async move {
            let _turn = turn;
            begun.send(()).ok();
            ends.await.ok();
            Ok(())
        });
        tokio::select! {
            biased;
            begun = begins => begun.unwrap(),
            _ = work => panic!("it is not done"),
        }
        assert_eq!(turns.available_permits(), 0, "and its sender has gone");
        end.send(()).unwrap();
        assert!(turns.acquire().await.is_ok());
    }
}
