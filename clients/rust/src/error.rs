//! What a failed call says, out of its status: the reasons are those of the table in chat_error.proto.

use std::{error::Error, fmt, iter::successors, time::Duration};

use prost::Message;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::{StatusExt, pb};

use crate::v1::UpstreamError;

/// A status with its details read.
#[derive(Clone, Debug)]
pub struct ChatError {
    pub code: Code,
    pub message: String,
    /// Such as `UPSTREAM_RATE_LIMITED`. Empty if the status is of gRPC itself, which gives no details.
    pub reason: String,
    /// For `UPSTREAM_ERROR_BODY` what the upstream's error amounts to, if it is known.
    pub mapped_reason: String,
    /// So much later another try may succeed. None: nobody said.
    pub retry_after: Option<Duration>,
    /// What is wrong with the request: the field's path, and what would be right.
    pub fields: Vec<(String, String)>,
    /// The call's name in the logs of the service. Empty if it was not reached.
    pub request_id: String,
    /// The call's name in the logs of the upstream. Empty: it gave none.
    pub upstream_request_id: String,
    /// What the upstream said. None: it did not answer.
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
    /// `DEADLINE_EXCEEDED`, as gRPC writes it; tonic has only `DeadlineExceeded`.
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

/// The status as gRPC has it. One with a source is of the connection, not of the service: tonic then says UNKNOWN or
/// CANCELLED, also when its own clock was first.
pub(crate) fn told(status: Status) -> Status {
    match status.source() {
        None => status,
        Some(source) if causes(source).any(|cause| cause.is::<TimeoutExpired>()) => {
            Status::deadline_exceeded("the deadline has passed")
        }
        Some(source) => Status::unavailable(words(source)),
    }
}

/// The error with its causes, which say more than it does.
pub(crate) fn words(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<_> = causes(error).map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}
