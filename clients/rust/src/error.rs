//! Typed errors of failed calls. The table in chat_error.proto lists the reasons.

use std::{error::Error, fmt, iter::successors, time::Duration};

use prost::Message;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::{StatusExt, pb};

use crate::v1::UpstreamError;

/// The error of a failed call: its status with the decoded details.
#[derive(Clone, Debug)]
pub struct ChatError {
    pub code: Code,
    pub message: String,
    /// A reason such as `UPSTREAM_RATE_LIMITED`. Empty if gRPC itself made the status, since it sends no details.
    pub reason: String,
    /// For `UPSTREAM_ERROR_BODY`, the reason to which the upstream's error maps. Empty if that is unknown.
    pub mapped_reason: String,
    /// The time after which a retry may succeed. None if the response did not contain one.
    pub retry_after: Option<Duration>,
    /// The invalid fields of the request: path and description of each.
    pub fields: Vec<(String, String)>,
    /// The call's id in the service's logs. Empty if the service was not reached.
    pub request_id: String,
    /// The call's id in the upstream's logs. Empty if the upstream sent none.
    pub upstream_request_id: String,
    /// The upstream's error. None if the upstream did not respond.
    pub upstream: Option<UpstreamError>,
}

impl From<Status> for ChatError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let bad = details.bad_request();
        let request_id = status
            .metadata()
            .get("x-request-id")
            .and_then(|id| id.to_str().ok())
            .unwrap_or_default();
        let upstream = pb::Status::decode(status.details())
            .unwrap_or_default()
            .details
            .into_iter()
            .find(|detail| detail.type_url.ends_with("/chatrpc.v1.UpstreamError"))
            .and_then(|detail| UpstreamError::decode(&*detail.value).ok());
        Self {
            code: status.code(),
            message: status.message().into(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            mapped_reason: info
                .and_then(|info| info.metadata.get("mapped_reason").cloned())
                .unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            fields: bad
                .into_iter()
                .flat_map(|bad| &bad.field_violations)
                .map(|violation| (violation.field.clone(), violation.description.clone()))
                .collect(),
            request_id: request_id.into(),
            upstream_request_id: details
                .request_info()
                .map(|info| info.request_id.clone())
                .filter(|id| id != request_id)
                .unwrap_or_default(),
            upstream,
        }
    }
}

impl ChatError {
    /// Returns the code in gRPC's spelling, such as `DEADLINE_EXCEEDED`; tonic has only `DeadlineExceeded`.
    pub fn code_name(&self) -> String {
        let mut name = String::new();
        for letter in format!("{:?}", self.code).chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
        name
    }
}

impl fmt::Display for ChatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code_name())?;
        if !self.reason.is_empty() {
            write!(f, " ({})", self.reason)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl Error for ChatError {}

/// Converts tonic's status to the one of gRPC's other libraries. A status with a source comes from the connection, not
/// from the service: tonic reports it as UNKNOWN or CANCELLED, also if its own timeout has expired.
pub(crate) fn grpc_status(status: Status) -> Status {
    match status.source() {
        None => status,
        Some(source) if causes(source).any(|cause| cause.is::<TimeoutExpired>()) => {
            Status::deadline_exceeded("deadline exceeded")
        }
        Some(source) => Status::unavailable(message_chain(source)),
    }
}

/// Returns the messages of the error and its causes, which are more specific.
pub(crate) fn message_chain(error: &(dyn Error + 'static)) -> String {
    let mut messages: Vec<_> = causes(error).map(ToString::to_string).collect();
    messages.dedup();
    messages.join(": ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}
