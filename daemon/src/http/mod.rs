//! The API's HTTP: who may speak, how much, how long; and which path means which method of [`App`].

mod body;
mod connections;
mod descriptor;
mod peer;
mod request;
mod routes;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};

use crate::app::{App, FramePlace, Refusal};
use body::Body;
use connections::{Activity, Connections};
use request::answer_refusal;

/// Longest wait for the head of a request, and so for an idle connection.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// Serves the API until the task is dropped.
pub async fn serve(listener: UnixListener, app: Arc<App>) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.admit(|activity| {
                tokio::spawn(serve_connection(stream, Arc::clone(&app), activity)).abort_handle()
            }),
            Err(error) => {
                // Out of descriptors, most likely: waiting beats spinning.
                tracing::warn!(%error, "cannot accept an API connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, app: Arc<App>, activity: Arc<Activity>) {
    let judged = peer::judge(&stream, &app).await;
    let connection = Arc::new(Connection { app, judged, activity, upgrade: Mutex::new(None) });
    let own = Arc::clone(&connection);
    let service = service_fn(move |request: Request<Incoming>| {
        let connection = Arc::clone(&own);
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "API connection ended early");
    }
    // In this task, so that it keeps its slot.
    if let Some((upgrade, place)) = connection.take_upgrade() {
        descriptor::serve(Arc::clone(&connection.app), upgrade, place, &connection.activity).await;
    }
}

/// What the requests of one connection have in common.
struct Connection {
    app: Arc<App>,
    judged: Result<(), Refusal>,
    activity: Arc<Activity>,
    /// Set by the request after which no other comes.
    upgrade: Mutex<Option<(OnUpgrade, FramePlace)>>,
}

impl Connection {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let busy = self.activity.busy();
        let upgrade = hyper::upgrade::on(&mut request);
        let mut response = respond(request, Arc::clone(&self.app), &self.judged).await;
        if let Some(place) = response.extensions_mut().remove::<FramePlace>() {
            *self.upgrade() = Some((upgrade, place));
        }
        // A capture is being answered for as long as it is read.
        response.map(|body| body.with(busy))
    }

    fn take_upgrade(&self) -> Option<(OnUpgrade, FramePlace)> {
        self.upgrade().take()
    }

    fn upgrade(&self) -> MutexGuard<'_, Option<(OnUpgrade, FramePlace)>> {
        self.upgrade.lock().expect("nobody panics while holding it")
    }
}

async fn respond(
    request: Request<Incoming>,
    app: Arc<App>,
    judged: &Result<(), Refusal>,
) -> Response<Body> {
    if let Err(refusal) = judged {
        return answer_refusal(refusal.clone());
    }
    match request::read(request).await {
        // A task of its own: a client that hangs up does not leave half of its request done.
        Ok(call) => match tokio::spawn(routes::route(app, call)).await {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(%error, "a request failed");
                answer_refusal(Refusal::new(
                    lichen_api::ErrorCode::Internal,
                    "the request failed by a fault of the daemon; see its log",
                ))
            }
        },
        Err(refusal) => answer_refusal(refusal),
    }
}
