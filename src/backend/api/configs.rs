//! Configurations that the backend keeps for its collectors.

use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use uuid::Uuid;

use super::access::{self, Peer, Reader};
use super::error::{ApiError, ok};
use super::request::{Id, Params, paginated};
use super::{Shared, body};
use crate::backend::store::{Audit, KeptConfig, NewConfig, Role};
use crate::clock;
use crate::config::{
    Config, layers,
    reader::{Problem, Text, WithheldKind},
};

/// What a collector is given until somebody writes a configuration for it: every section, no key,
/// so that the host's own file stays in force.
const DEFAULT_CONFIG: &str = include_str!("default_config.toml");

/// GET `/config/{id}`.
pub(super) async fn get(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    id: Id,
) -> Result<Response, ApiError> {
    let reader = access::reader(&shared, &headers, &peer).await?;
    if let Reader::Collector(caller) = &reader
        && id.0.parse() != Ok(caller.id)
    {
        let message = "a collector reads its own configuration only";
        return Err(ApiError::forbidden("not_yours", message));
    }
    let config = kept_or_first(&shared, id.of("the collector")?).await?;
    let tag = format!("\"{}\"", config.version);
    if matches(&headers, &tag) {
        return Ok(with_version(StatusCode::NOT_MODIFIED.into_response(), &config, &tag));
    }
    let mut response = config.text.clone().into_response();
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(with_version(response, &config, &tag))
}

/// PUT `/config/{id}`.
pub(super) async fn put(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    id: Id,
    body: Body,
) -> Result<Response, ApiError> {
    let user = access::user(&shared, &headers, &peer, Role::Admin).await?;
    let id: Uuid = id.of("the collector")?;
    let text = body::small(&shared.room, None, &headers, body).await?;
    let text = String::from_utf8(text.into())
        .map_err(|_| ApiError::bad_request("a configuration is UTF-8 text"))?;
    let passed_over = check(&text)?;
    known(&shared, id).await?;
    // A client that sends no body has made a mistake: this is not the configuration it means.
    if text.trim().is_empty() {
        let message = "the body is empty; a configuration that changes nothing is a comment";
        return Err(ApiError::bad_request(message));
    }
    let audit = audit(id, user.username);
    let version = shared.store.next_config(NewConfig { collector_id: id, text, audit }).await?;
    let mut message = "the collector takes it at its next check".to_owned();
    for Problem { message: section, line, .. } in passed_over {
        let line = line.unwrap_or_default();
        tracing::warn!(collector = %id, version, line, "{section}; the section is passed over");
        message.push_str("; ");
        message.push_str(&section);
    }
    Ok(ok(&json!({
        "status": "success",
        "collector_id": id,
        "version": version,
        "message": message,
    })))
}

/// GET `/config/{id}/versions`.
pub(super) async fn versions(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    id: Id,
    params: Params,
) -> Result<Response, ApiError> {
    access::user(&shared, &headers, &peer, Role::Viewer).await?;
    let page = params.page()?;
    let id: Uuid = id.of("the collector")?;
    known(&shared, id).await?;
    let listing = shared.store.config_versions(id, page).await?;
    Ok(ok(&paginated(listing, page, |config| {
        let mut row = json!({
            "version": config.version,
            "created_at": clock::rfc3339(config.created_at),
            "updated_by": config.updated_by,
        });
        if let Some(at) = config.applied_at {
            row["applied_at"] = clock::rfc3339(at).into();
        }
        if let Some(error) = &config.error {
            row["error"] = error.as_str().into();
        }
        row
    })))
}

async fn kept_or_first(shared: &Shared, id: Uuid) -> Result<KeptConfig, ApiError> {
    if let Some(config) = shared.store.config(id).await? {
        return Ok(config);
    }
    known(shared, id).await?;
    let text = DEFAULT_CONFIG.to_owned();
    let audit = audit(id, "default".to_owned());
    Ok(shared.store.first_config(NewConfig { collector_id: id, text, audit }).await?)
}

async fn known(shared: &Shared, id: Uuid) -> Result<(), ApiError> {
    match shared.store.collector(id, clock::now()).await? {
        Some(_) => Ok(()),
        None => Err(ApiError::not_found("the collector")),
    }
}

/// Whether an agent would take it: the same code reads it there, over the host's own file, which is
/// not known here and stands for itself: a server that is spoken of is one that the host may have.
/// Returns the sections that an agent passes over.
fn check(text: &str) -> Result<Vec<Problem>, ApiError> {
    let stand_in = layers::stand_in_for(text);
    let own = Text { file: Path::new(""), text: &stand_in };
    let remote = Text { file: Path::new("configuration"), text };
    let mut passed_over = Vec::new();
    let (problems, unlisted) = match Config::read_layers(own, Some(remote)) {
        // How far a value may go is each host's to say; a key of the host's alone is a mistake.
        Ok(loaded) => {
            passed_over = loaded.passed_over;
            let withheld = loaded.withheld.into_iter();
            let forbidden = withheld.filter(|it| it.kind == WithheldKind::Forbidden);
            (forbidden.map(|it| it.problem).collect(), 0)
        }
        Err(error) => (error.problems, error.unlisted),
    };
    let Some(first) = problems.first() else { return Ok(passed_over) };
    let listed: Vec<Value> = problems
        .iter()
        .map(|problem| {
            json!({"line": problem.line, "message": problem.message, "hint": problem.hint})
        })
        .collect();
    let message = format!("the configuration would not load: {}", first.message);
    let error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "config_invalid", message);
    Err(error.with_details(json!({"line": first.line, "problems": listed, "unlisted": unlisted})))
}

fn audit(id: Uuid, actor: String) -> Audit {
    let (at, action) = (clock::now(), "config.write".to_owned());
    Audit { at, actor, action, subject: id.to_string() }
}

fn matches(headers: &HeaderMap, tag: &str) -> bool {
    let Some(wanted) = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    wanted.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

fn with_version(mut response: Response, config: &KeptConfig, tag: &str) -> Response {
    let headers = response.headers_mut();
    headers.insert("x-config-version", HeaderValue::from(config.version));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C50: what is served by default loads.
    #[test]
    fn the_default_configuration_loads_and_changes_nothing() {
        let read = |text| Config::read(Path::new("x"), text).expect("it loads");
        let (served, none) = (read(DEFAULT_CONFIG), read(""));
        assert_eq!(format!("{served:?}"), format!("{none:?}"));
        let uncommented = DEFAULT_CONFIG.replace("# ", "");
        let (_, keys) = uncommented.split_once('\n').expect("a first line");
        assert_eq!(format!("{:?}", read(keys)), format!("{none:?}"));
    }
}
