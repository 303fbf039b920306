//! Errors as gRPC statuses, both ways: the reason and its metadata travel in a
//! `google.rpc.ErrorInfo`, as <https://google.aip.dev/193> has it.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{DOMAIN, Error, Happened, Reason};

/// Metadata that says whether a failed write took place: "no" or "unknown".
const HAPPENED: &str = "happened";

/// The status that a server answers with.
pub fn to_status(error: &Error) -> Status {
    let row = error.reason.row();
    let mut metadata: std::collections::HashMap<String, String> =
        error.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    metadata.insert(HAPPENED.into(), row.happened.as_str().into());
    let details = ErrorDetails::with_error_info(row.name, DOMAIN, metadata);
    Status::with_error_details(row.grpc, error.message.clone(), details)
}

/// What a client makes of a status. A status without our detail comes from a proxy, a transport or
/// somebody else's server: `sent` says whether a write may have reached the server by then, and such
/// a write's outcome is unknown unless the code itself rules it out.
pub fn from_status(status: &Status, sent: Happened) -> Error {
    if let Some(info) = status.get_details_error_info()
        && info.domain == DOMAIN
        && let Some(reason) = Reason::from_name(&info.reason)
    {
        let mut error = Error::new(reason, status.message());
        error.metadata = info.metadata.into_iter().filter(|(key, _)| key != HAPPENED).collect();
        return error;
    }
    let text = |what: &str| format!("{what}: {}", status.message());
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => Error::new(Reason::InvalidArgument, status.message()),
        Code::Unimplemented => Error::new(Reason::Unimplemented, text("the server does not know this call")),
        Code::ResourceExhausted if sent == Happened::No => Error::new(Reason::Overloaded, status.message()),
        _ if sent == Happened::Unknown => {
            Error::new(Reason::OutcomeUnknown, text("the connection failed after the write was sent"))
        }
        Code::DeadlineExceeded | Code::Cancelled => {
            Error::new(Reason::DeadlineExceeded, text("no answer in time"))
        }
        Code::Unavailable | Code::Unknown => {
            Error::new(Reason::Unavailable, text("the node can't be reached"))
        }
        _ => Error::new(Reason::Internal, format!("{}: {}", status.code(), status.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TABLE;

    #[test]
    fn every_reason_survives_the_wire_with_its_metadata() {
        for row in &TABLE {
            let error = Error::new(row.reason, "said so").with("current_version", 7);
            let status = to_status(&error);
            assert_eq!(status.code(), row.grpc);
            assert_eq!(from_status(&status, Happened::Unknown), error);
        }
    }

    #[test]
    fn a_foreign_unavailable_after_sending_is_an_unknown_outcome() {
        let status = Status::unavailable("proxy lost its upstream");
        assert_eq!(from_status(&status, Happened::Unknown).reason, Reason::OutcomeUnknown);
        assert_eq!(from_status(&status, Happened::No).reason, Reason::Unavailable);
    }
}
