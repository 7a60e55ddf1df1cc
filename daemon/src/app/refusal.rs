//! What a caller is told when something is refused.

use lichen_api::{ErrorBody, ErrorCode, ErrorDetail};

use super::network_filter::FilterError;
use crate::causes::chain;
use crate::ipam::SubnetError;
use crate::names::NameError;
use crate::state::{NetworkError, PortError, WorkloadError};
use crate::wiring::listeners::BindError;
use crate::wiring::namespaces::ProcessError;

/// A kind for programs and a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub code: ErrorCode,
    /// What was wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal in so many words.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The caller's fault.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// As it is sent.
    pub fn into_body(self) -> ErrorBody {
        ErrorBody { error: ErrorDetail { code: self.code, message: self.message } }
    }
}

impl From<FilterError> for Refusal {
    fn from(error: FilterError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<NetworkError> for Refusal {
    fn from(error: NetworkError) -> Self {
        let code = match &error {
            NetworkError::Database(source) => return source.into(),
            NetworkError::Unknown(_) => ErrorCode::NotFound,
            NetworkError::Ambiguous(_)
            | NetworkError::Subnet(
                SubnetError::Size(..)
                | SubnetError::Special(..)
                | SubnetError::Gateway { .. }
                | SubnetError::Gateway6 { .. }
                | SubnetError::NotFirst6 { .. },
            ) => ErrorCode::BadRequest,
            NetworkError::Exists(_)
            | NetworkError::InUse { .. }
            | NetworkError::Default(_)
            | NetworkError::TooMany
            | NetworkError::Subnet(_) => ErrorCode::Conflict,
        };
        Self::new(code, error.to_string())
    }
}

impl From<WorkloadError> for Refusal {
    fn from(error: WorkloadError) -> Self {
        let code = match error {
            WorkloadError::Database(source) => return (&source).into(),
            WorkloadError::Network(error) => return error.into(),
            WorkloadError::Unknown(_) => ErrorCode::NotFound,
            WorkloadError::Exists(_)
            | WorkloadError::Attached(_)
            | WorkloadError::Netns(_)
            | WorkloadError::AddressTaken { .. }
            | WorkloadError::MacTaken { .. }
            | WorkloadError::Full(_) => ErrorCode::Conflict,
            WorkloadError::NotAssignable { .. } | WorkloadError::InvalidMac(_) => {
                ErrorCode::BadRequest
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<PortError> for Refusal {
    fn from(error: PortError) -> Self {
        let code = match &error {
            PortError::Database(source) => return source.into(),
            PortError::Unknown(_) | PortError::OtherTransport(..) => ErrorCode::NotFound,
            PortError::Taken { .. } | PortError::OfWorkload { .. } | PortError::TooMany => {
                ErrorCode::Conflict
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<BindError> for Refusal {
    fn from(error: BindError) -> Self {
        let code = match &error {
            BindError::InUse { .. } => ErrorCode::Conflict,
            BindError::Privileged { .. } | BindError::NoSuchAddress(_) => ErrorCode::Unprocessable,
            BindError::NoDescriptor(_) | BindError::Io { .. } => ErrorCode::Unprocessable,
        };
        Self::new(code, chain(&error))
    }
}

impl From<ProcessError> for Refusal {
    fn from(error: ProcessError) -> Self {
        Self::new(ErrorCode::Unprocessable, chain(&error))
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        (&error).into()
    }
}

impl From<&rusqlite::Error> for Refusal {
    fn from(error: &rusqlite::Error) -> Self {
        tracing::error!(%error, "the state could not be used");
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::new(
                ErrorCode::InsufficientStorage,
                "the disk of the state directory is full; free some space and try again",
            ),
            _ => Self::new(ErrorCode::Internal, format!("the state could not be used: {error}")),
        }
    }
}
