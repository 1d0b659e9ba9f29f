//! From a path to an answer.

use glm_wire::error::{ErrorDetail, ErrorKind};
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue,
    RETRY_AFTER,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

use super::body::{self, Body};
use super::{Peer, Refusal, Server};
use crate::metrics;
use crate::service::{Caller, Op, Reply, Transport};

const JSON: &str = "application/json";
/// Sent back as it came, so that logs of both sides can be joined.
const REQUEST_ID: &str = "x-request-id";
/// Longest identity that is sent back.
const MAX_REQUEST_ID: usize = 128;

/// What a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Ask(Op),
    Models,
    Model(String),
    Status,
    Live,
    Ready,
    Metrics,
    Cancel(String),
    Reload,
    Unload,
}

/// Finds the route; `Err` with the method that the path wants, or nothing if there is no such path.
pub(super) fn find(method: &Method, path: &str) -> Result<Route, Option<&'static str>> {
    let (wanted, route) = match path {
        "/v1/infill" => ("POST", Route::Ask(Op::Infill)),
        "/v1/classify" => ("POST", Route::Ask(Op::Classify)),
        "/v1/systemone" => ("POST", Route::Ask(Op::SystemOne)),
        "/v1/completions" => ("POST", Route::Ask(Op::Completions)),
        "/v1/chat/completions" => ("POST", Route::Ask(Op::Chat)),
        "/v1/tokenize" => ("POST", Route::Ask(Op::Tokenize)),
        "/v1/detokenize" => ("POST", Route::Ask(Op::Detokenize)),
        "/v1/models" => ("GET", Route::Models),
        "/v1/status" => ("GET", Route::Status),
        "/health/live" => ("GET", Route::Live),
        "/health/ready" => ("GET", Route::Ready),
        "/metrics" => ("GET", Route::Metrics),
        "/admin/reload" => ("POST", Route::Reload),
        "/admin/unload" => ("POST", Route::Unload),
        _ => match (
            path.strip_prefix("/v1/models/"),
            path.strip_prefix("/v1/requests/"),
        ) {
            (Some(name), _) if !name.is_empty() => ("GET", Route::Model(name.to_owned())),
            (_, Some(id)) if !id.is_empty() => ("DELETE", Route::Cancel(id.to_owned())),
            _ => return Err(None),
        },
    };
    // hyper leaves the body of an answer to HEAD away.
    let same = method == wanted || (method == Method::HEAD && wanted == "GET");
    same.then_some(route).ok_or(Some(wanted))
}

impl Server {
    /// Answers a request; an error is an answer too.
    pub(super) async fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
        let name = request_id(request.headers());
        let mut response = match self.route(peer, request).await {
            Ok(response) => response,
            Err(refusal) => refused(refusal),
        };
        if let Some(name) = name {
            response.headers_mut().insert(REQUEST_ID, name);
        }
        response
    }

    async fn route(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        if let (Peer::Remote(_), Some(token)) = (peer, &self.token) {
            token.check(request.headers().get(AUTHORIZATION))?;
        }
        let route = find(request.method(), request.uri().path())
            .map_err(|wanted| no_route(request.method(), request.uri().path(), wanted))?;
        match route {
            Route::Ask(op) => return self.ask(peer, op, request).await,
            Route::Models => Ok(json(&self.service.models())),
            Route::Model(name) => self.model(&name),
            Route::Status => Ok(json(&self.service.status())),
            Route::Live => Ok(state("live")),
            Route::Ready => self.ready(),
            Route::Metrics => self.metrics(),
            Route::Cancel(id) => self.cancel(peer, &id),
            Route::Reload => self.reload(peer).await,
            Route::Unload => self.unload(peer).await,
        }
    }

    async fn ask(
        &self,
        peer: &Peer,
        op: Op,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let encoding = request.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|e| e != "identity") {
            return Err(Refusal::with_status(
                415,
                ErrorDetail::new(
                    ErrorKind::InvalidRequestError,
                    "unsupported_encoding",
                    "Content-Encoding: bodies are read as they are, send plain JSON",
                ),
            ));
        }
        let limits = self.limits();
        let caller = Caller {
            client: peer.client(),
            transport: match peer {
                Peer::Local { .. } => Transport::Unix,
                Peer::Remote(_) => Transport::Tcp,
            },
        };
        let share = self.quotas.enter(&caller.client, limits.requests_per_user);
        let Some(share) = share else {
            let n = limits.requests_per_user;
            let detail = crate::service::failure::busy(format!(
                "http.requests_per_user: this user has {n} requests under way"
            ));
            (self.service.metrics()).rejected(op.name(), caller.transport.name(), &detail.code);
            return Err(detail.into());
        };
        let received = body::receive(request.into_body(), &self.bounds(&limits)).await?;
        let prepared = self.service.prepare(op, received.bytes, &caller).await?;
        drop(received.memory);
        Ok(match self.service.run(prepared, &caller).await? {
            Reply::Whole(bytes) => with_type(JSON, Body::whole(bytes)),
            Reply::Stream(stream) => {
                let mut response = with_type("text/event-stream", Body::events(*stream, share));
                let no_store = HeaderValue::from_static("no-store");
                response.headers_mut().insert(CACHE_CONTROL, no_store);
                response
            }
        })
    }

    fn model(&self, name: &str) -> Result<Response<Body>, Refusal> {
        let models = self.service.models();
        match models.data.iter().find(|model| model.id == name) {
            Some(model) => Ok(json(model)),
            None => Err(ErrorDetail::new(
                ErrorKind::NotFound,
                "model_not_found",
                "no such model is loaded; GET /v1/models names the one that is",
            )
            .into()),
        }
    }

    fn ready(&self) -> Result<Response<Body>, Refusal> {
        match self.service.is_ready() {
            true => Ok(state("ready")),
            false => {
                let phase = self.service.engine().status().phase;
                Err(ErrorDetail::new(
                    ErrorKind::Unavailable,
                    "not_ready",
                    format!("the engine is {}", phase.name()),
                )
                .with_retry_after_ms(1000)
                .into())
            }
        }
    }

    fn metrics(&self) -> Result<Response<Body>, Refusal> {
        let text = self.service.metrics().text().map_err(|e| {
            ErrorDetail::new(ErrorKind::ServerError, "internal", format!("metrics: {e}"))
        })?;
        Ok(with_type(metrics::CONTENT_TYPE, Body::whole(text)))
    }

    fn cancel(&self, peer: &Peer, id: &str) -> Result<Response<Body>, Refusal> {
        let caller = Caller {
            client: peer.client(),
            transport: Transport::Unix,
        };
        if self.service.cancel(id, &caller, peer.is_operator()) {
            return Ok(state("cancelled"));
        }
        Err(ErrorDetail::new(
            ErrorKind::NotFound,
            "request_not_found",
            "no such request of yours is under way; GET /v1/status lists them",
        )
        .into())
    }

    async fn reload(&self, peer: &Peer) -> Result<Response<Body>, Refusal> {
        operator_only(peer)?;
        Ok(json(&self.operations.reload().await?))
    }

    async fn unload(&self, peer: &Peer) -> Result<Response<Body>, Refusal> {
        operator_only(peer)?;
        self.operations.unload().await?;
        Ok(state("unloaded"))
    }
}

fn operator_only(peer: &Peer) -> Result<(), Refusal> {
    match peer.is_operator() {
        true => Ok(()),
        false => Err(ErrorDetail::new(
            ErrorKind::PermissionDenied,
            "permission_denied",
            "only root and the user of the daemon may do this, on the Unix socket",
        )
        .into()),
    }
}

/// The identity that the client gave its request, if it can be sent back.
fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(REQUEST_ID)?;
    (value.len() <= MAX_REQUEST_ID && value.to_str().is_ok()).then(|| value.clone())
}

fn no_route(method: &Method, path: &str, wanted: Option<&'static str>) -> Refusal {
    match wanted {
        Some(wanted) => Refusal {
            allow: Some(wanted),
            ..Refusal::with_status(
                405,
                ErrorDetail::new(
                    ErrorKind::InvalidRequestError,
                    "method_not_allowed",
                    format!("{path} takes {wanted}, not {method}"),
                ),
            )
        },
        None => ErrorDetail::new(
            ErrorKind::NotFound,
            "route_not_found",
            format!("there is no {}", shown(path)),
        )
        .into(),
    }
}

/// The beginning of a path that nobody has bounded.
fn shown(path: &str) -> &str {
    /// Enough to recognise a mistyped route.
    const MOST: usize = 80;
    path.get(..MOST).unwrap_or(path)
}

fn with_type(mime: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let mime = HeaderValue::from_static(mime);
    response.headers_mut().insert(CONTENT_TYPE, mime);
    response
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_type(JSON, Body::whole(bytes)),
        Err(e) => {
            refused(ErrorDetail::new(ErrorKind::ServerError, "internal", e.to_string()).into())
        }
    }
}

/// `{"status": word}`
fn state(word: &'static str) -> Response<Body> {
    json(&serde_json::json!({ "status": word }))
}

/// The envelope with its status and headers.
fn refused(refusal: Refusal) -> Response<Body> {
    let Refusal {
        status,
        detail,
        allow,
    } = refusal;
    let retry_after = detail.retry_after_ms;
    // The rest of a body that nobody wants must not be taken for the next request.
    let closes = matches!(status, 408 | 413);
    let mut response = with_type(JSON, Body::whole(body::envelope(detail)));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Some(ms) = retry_after {
        // The header knows whole seconds only (RFC 9110, 10.2.3).
        headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
    }
    if let Some(method) = allow {
        headers.insert(ALLOW, HeaderValue::from_static(method));
    }
    if closes {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_of_the_contract_is_found_by_its_method_only() {
        let routes = [
            ("POST", "/v1/infill"),
            ("POST", "/v1/classify"),
            ("POST", "/v1/systemone"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/tokenize"),
            ("POST", "/v1/detokenize"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/glm-mini"),
            ("GET", "/v1/status"),
            ("GET", "/health/live"),
            ("GET", "/health/ready"),
            ("GET", "/metrics"),
            ("POST", "/admin/reload"),
            ("POST", "/admin/unload"),
            ("DELETE", "/v1/requests/req-1"),
        ];
        for (method, path) in routes {
            let right = method.parse::<Method>().expect("a method");
            assert!(find(&right, path).is_ok(), "{method} {path}");
            assert_eq!(find(&Method::PUT, path), Err(Some(method)), "{path}");
        }
        assert!(find(&Method::HEAD, "/health/live").is_ok());
        for path in ["/", "/v1", "/v1/requests/", "/v1/models/", "/v1/infill/"] {
            assert_eq!(find(&Method::GET, path), Err(None), "{path}");
        }
    }
}
