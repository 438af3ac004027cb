//! POST `/collectors/renew-certificate`: a new certificate in place of one that is still good.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::access::{self, Channel, Peer};
use super::error::{ApiError, ok};
use super::{Shared, body, collectors, counted};
use crate::backend::auth::Attempts;
use crate::backend::store::{Audit, Renewal};
use crate::clock;

/// Certificates of one collector in [`WINDOW_MAX`], or in a certificate's life where that is
/// shorter.
const CERTIFICATES_MAX: u32 = 6;
const WINDOW_MAX: Duration = Duration::from_secs(3600);

#[derive(Deserialize)]
struct RenewRequest {
    csr: String,
}

#[derive(Serialize)]
struct RenewResponse {
    certificate: String,
    ca_certificate: String,
    certificate_expires_at: String,
}

/// The certificates that each collector was given, by its id, whether it registered or renewed. An
/// agent renews once in a certificate's life, and again when the answer was lost; each one that is
/// made can open connections until its end.
pub(super) fn attempts(certificate_life: Duration) -> Attempts<Uuid> {
    Attempts::within(certificate_life.min(WINDOW_MAX), CERTIFICATES_MAX)
}

/// The handler. The key of the request may be a new one: who asks is proven by the token and by the
/// certificate of the connection. Both certificates are good until the new one is used.
pub(super) async fn renew_certificate(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let caller = access::collector(&shared, &headers, &peer).await?;
    if !matches!(peer.channel, Channel::Mutual(_)) {
        let message = "a certificate is renewed over a connection that shows the present one";
        return Err(ApiError::forbidden("certificate_required", message));
    }
    let request: RenewRequest = body::json(&shared.room, Some(caller.id), &headers, body).await?;
    counted(&shared.certificates, caller.id)?;
    let now = clock::now();
    let issued = collectors::certify(&shared, Some(&request.csr), caller.id, now)?;
    let renewal = Renewal {
        id: caller.id,
        thumbprint: issued.thumbprint,
        certificate_expires_at: issued.expires_at,
        audit: Audit {
            at: now,
            actor: peer.address.to_string(),
            action: "collector.renew_certificate".to_owned(),
            subject: caller.id.to_string(),
        },
    };
    if !shared.store.renew_certificate(renewal).await? {
        return Err(ApiError::unauthorized()); // removed in this moment
    }
    tracing::info!(collector = %caller.id, from = %peer.address, "was given a new certificate");
    Ok(ok(&RenewResponse {
        certificate: issued.certificate,
        ca_certificate: shared.keys.authority.certificate_pem().to_owned(),
        certificate_expires_at: clock::rfc3339(issued.expires_at),
    }))
}
