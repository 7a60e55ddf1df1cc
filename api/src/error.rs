//! What the API answers when it refuses.

use serde::{Deserialize, Serialize};

/// Body of every response whose status is not 2xx: `{"error":{"code":"…","message":"…"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what was wrong and what to do.
    pub message: String,
}

/// The kinds of refusal, each with one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the request is malformed or a value in it is not allowed.
    BadRequest,
    /// 403: the peer may not use this API.
    Forbidden,
    /// 404: there is no such thing, or no such path.
    NotFound,
    /// 405: the path exists, the method does not.
    MethodNotAllowed,
    /// 409: it exists already, or something else stands in the way.
    Conflict,
    /// 409: client and daemon are of different versions.
    VersionSkew,
    /// 413: the body is longer than [`crate::MAX_REQUEST_BODY`].
    TooLarge,
    /// 422: the request is fine, the host or the workload would not have it.
    Unprocessable,
    /// 500: our fault.
    Internal,
    /// 503: the datapath is not there; it is being started again.
    Unavailable,
    /// 507: the disk of the state directory is full.
    InsufficientStorage,
}

impl ErrorCode {
    /// Its HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict | Self::VersionSkew => 409,
            Self::TooLarge => 413,
            Self::Unprocessable => 422,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::InsufficientStorage => 507,
        }
    }
}
