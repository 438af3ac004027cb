//! What handlers take from a request's address.

use std::collections::HashMap;

use axum::extract::{FromRequestParts, Query, RawPathParams};
use http::request::Parts;
use jiff::Timestamp;
use serde::Serialize;

use super::access::Peer;
use super::error::ApiError;
use crate::backend::store::{Listing, Page};

/// Rows of a page unless the request says otherwise.
const PAGE_SIZE: u32 = 20;
const PAGE_SIZE_MAX: u32 = 100;

/// The `{id}` of the path.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Id(pub(in crate::backend) String);

/// The query string.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Params(HashMap<String, String>);

#[derive(Debug, Serialize)]
struct Paginated<T> {
    data: Vec<T>,
    total: u64,
    page: u32,
    page_size: u32,
    total_pages: u64,
}

impl Id {
    /// The id as its type; an id of another form is an unknown one.
    pub(in crate::backend) fn of<T: std::str::FromStr>(&self, what: &str) -> Result<T, ApiError> {
        self.0.parse().map_err(|_| ApiError::not_found(what))
    }
}

impl Params {
    /// A parameter; an empty one is absent.
    pub(in crate::backend) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// A parameter as its type.
    pub(in crate::backend) fn parse<T: std::str::FromStr>(
        &self,
        name: &str,
    ) -> Result<Option<T>, ApiError> {
        let read = |text: &str| {
            text.parse().map_err(|_| ApiError::bad_request(format!("{name} is not as expected")))
        };
        self.get(name).map(read).transpose()
    }

    /// `page` and `page_size`.
    pub(in crate::backend) fn page(&self) -> Result<Page, ApiError> {
        let number = self.parse("page")?.unwrap_or(1);
        let size = self.parse("page_size")?.unwrap_or(PAGE_SIZE);
        if number == 0 || !(1..=PAGE_SIZE_MAX).contains(&size) {
            let message = format!("page counts from 1, page_size is 1 to {PAGE_SIZE_MAX}");
            return Err(ApiError::bad_request(message));
        }
        Ok(Page { number, size })
    }

    /// An RFC 3339 time.
    pub(in crate::backend) fn time(&self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        self.parse(name)
    }
}

/// A page of rows as the contract's `Paginated`.
pub(in crate::backend) fn paginated<T, U: Serialize>(
    listing: Listing<T>,
    page: Page,
    show: impl FnMut(T) -> U,
) -> impl Serialize {
    Paginated {
        data: listing.rows.into_iter().map(show).collect(),
        total: listing.total,
        page: page.number,
        page_size: page.size,
        total_pages: listing.total.div_ceil(u64::from(page.size)),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::bad_request("the path is not UTF-8"))?;
        let id = params.iter().find(|(name, _)| *name == "id").map(|(_, id)| id.to_owned());
        id.map(Self).ok_or_else(ApiError::internal)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(params)| Self(params))
            .map_err(|_| ApiError::bad_request("the query is not well formed"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Peer>().cloned().ok_or_else(ApiError::internal)
    }
}
