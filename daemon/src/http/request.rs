//! One request, read within bounds, and one answer.

use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Version};
use lichen_api::{
    DESCRIPTOR_UPGRADE, ErrorCode, Filters, MAX_REQUEST_BODY, VERSION, VERSION_HEADER,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::body::Body;
use crate::app::Refusal;

/// Longest wait for the body.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// A request as the routes see it.
pub(super) struct Call {
    pub(super) method: Method,
    /// The path's segments after `/v1`, percent-decoded.
    pub(super) path: Vec<String>,
    /// Whether the query says `force=true`.
    pub(super) force: bool,
    /// Whether the connection is to be upgraded for a descriptor.
    pub(super) upgrade: bool,
    /// What the query says of `filters`, still encoded.
    filters: Option<String>,
    body: Bytes,
}

impl Call {
    /// The filters that the query names; none when it names none.
    pub(super) fn filters(&self) -> Result<Filters, Refusal> {
        let Some(encoded) = &self.filters else { return Ok(Filters::default()) };
        // Forms write a space so, and a plus sign as %2B.
        let text = decode(&encoded.replace('+', "%20"))
            .ok_or_else(|| Refusal::bad_request("the query's filters are malformed"))?;
        serde_json::from_str(&text).map_err(|error| {
            Refusal::bad_request(format!(
                "the query's filters are no JSON such as {{\"label\":[\"tier=back\"]}}: {error}"
            ))
        })
    }

    /// Whether it has no body.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// The body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Refusal::bad_request(format!("the request body: {error}")))
    }
}

/// Reads a request whole.
pub(super) async fn read(request: Request<Incoming>) -> Result<Call, Refusal> {
    let (head, body) = request.into_parts();
    let path = segments(head.uri.path())?;
    if !tells_its_version_itself(&path) {
        check_version(head.headers.get(VERSION_HEADER).map(|value| value.as_bytes()))?;
    }
    let too_large = || {
        Refusal::new(
            ErrorCode::TooLarge,
            format!("the request body is longer than {MAX_REQUEST_BODY} bytes"),
        )
    };
    let limit = u64::try_from(MAX_REQUEST_BODY).expect("a small number");
    if body.size_hint().lower() > limit {
        return Err(too_large());
    }
    let reading = Limited::new(body, MAX_REQUEST_BODY).collect();
    let body = match tokio::time::timeout(BODY_PATIENCE, reading).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(error)) => {
            return Err(Refusal::bad_request(format!("the request body: {error}")));
        }
        Err(_) => return Err(Refusal::bad_request("the request body did not come in time")),
    };
    let force = head.uri.query().is_some_and(|query| {
        query.split('&').any(|pair| matches!(pair, "force=true" | "force=1" | "force"))
    });
    let filters = head.uri.query().and_then(|query| {
        query.split('&').find_map(|pair| pair.strip_prefix("filters=")).map(str::to_owned)
    });
    let upgrade = asks_for_upgrade(head.version, &head.headers);
    Ok(Call { method: head.method, path, force, upgrade, filters, body })
}

/// Whether a client would go on with a descriptor (RFC 9110, 7.8).
fn asks_for_upgrade(version: Version, headers: &HeaderMap) -> bool {
    let names = |header: &str, wanted: &str| {
        let values = headers.get_all(header).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|it| it.trim().eq_ignore_ascii_case(wanted))
    };
    version == Version::HTTP_11
        && names("connection", "upgrade")
        && names("upgrade", DESCRIPTOR_UPGRADE)
}

/// What a client of any version may ask: who are you, and please go.
fn tells_its_version_itself(path: &[String]) -> bool {
    matches!(path.first().map(String::as_str), Some("version" | "daemon"))
}

fn check_version(client: Option<&[u8]>) -> Result<(), Refusal> {
    match client {
        // A person with curl.
        None => Ok(()),
        Some(version) if version == VERSION.as_bytes() => Ok(()),
        Some(version) => Err(Refusal::new(
            ErrorCode::VersionSkew,
            format!(
                "the client is lichen {}, this daemon is {VERSION}; \
                 bring it up to date with: lichen daemon restart --datapath",
                version.escape_ascii()
            ),
        )),
    }
}

fn segments(path: &str) -> Result<Vec<String>, Refusal> {
    let not_found = || Refusal::new(ErrorCode::NotFound, "there is no such path in this API");
    let rest = path.strip_prefix("/v1/").ok_or_else(not_found)?;
    rest.split('/')
        .map(|segment| decode(segment).ok_or_else(|| Refusal::bad_request("the path is malformed")))
        .collect()
}

/// Percent-decodes one segment (RFC 3986 §2.1).
fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
            bytes.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits"));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// A JSON answer.
pub(super) fn answer(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_vec(value).expect("our own shapes are always JSON");
    answer_as("application/json", status, body.into())
}

/// An answer of that type.
pub(super) fn answer_as(kind: &'static str, status: StatusCode, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", kind)
        .header(VERSION_HEADER, VERSION)
        .body(body)
        .expect("constant headers are valid")
}

/// A refusal as an answer.
pub(super) fn answer_refusal(refusal: Refusal) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.code.status()).expect("statuses of ours are valid");
    answer(status, &refusal.into_body())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_before_it_is_decoded() {
        assert_eq!(segments("/v1/workloads/a%2Fb/attach").unwrap(), ["workloads", "a/b", "attach"]);
        for path in ["/", "/v2/x", "/v1/%", "/v1/%f", "/v1/%zz", "/v1/%ff"] {
            assert!(segments(path).is_err(), "{path}");
        }
    }

    #[test]
    fn an_upgrade_is_asked_for_with_both_headers_and_by_its_name() {
        let asks = |version, connection: &str, upgrade: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("connection", connection.parse().unwrap());
            headers.insert("upgrade", upgrade.parse().unwrap());
            asks_for_upgrade(version, &headers)
        };
        assert!(asks(Version::HTTP_11, "upgrade", "lichen-descriptor"));
        assert!(asks(Version::HTTP_11, "keep-alive, Upgrade", "websocket, Lichen-Descriptor"));
        assert!(!asks(Version::HTTP_10, "upgrade", "lichen-descriptor"));
        assert!(!asks(Version::HTTP_11, "close", "lichen-descriptor"));
        assert!(!asks(Version::HTTP_11, "upgrade", "websocket"));
        assert!(!asks_for_upgrade(Version::HTTP_11, &HeaderMap::new()));
    }

    #[test]
    fn a_client_of_another_version_is_refused_with_the_remedy() {
        assert!(check_version(None).is_ok());
        assert!(check_version(Some(VERSION.as_bytes())).is_ok());
        let refusal = check_version(Some(b"9.9.9")).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::VersionSkew);
        assert!(refusal.message.contains("lichen daemon restart"), "{}", refusal.message);
    }
}
