//! Which method and path mean what.

use std::sync::Arc;

use hyper::{Method, Response, StatusCode};
use lichen_api::{Creation, DESCRIPTOR_UPGRADE, ErrorCode, PruneNetworks};
use serde::Serialize;

use super::body::Body;
use super::descriptor::switching;
use super::request::{Call, answer, answer_as, answer_refusal};
use crate::app::{App, Refusal, Running};
use crate::state::InUse;

/// Does what the request asks, and answers.
pub(super) async fn route(app: Arc<App>, call: Call) -> Response<Body> {
    let path: Vec<&str> = call.path.iter().map(String::as_str).collect();
    let result = match path.as_slice() {
        ["version"] => version(&app, &call),
        ["status"] => status(&app, &call).await,
        ["metrics"] => metrics(&app, &call).await,
        ["flows"] => flows(&app, &call, None).await,
        ["capture"] => capture(&app, &call).await,
        ["daemon", "stop"] => stop(&app, &call).await,
        ["workloads"] => workloads(&app, &call).await,
        ["workloads", name] => workload(&app, &call, name).await,
        ["workloads", name, "flows"] => flows(&app, &call, Some(name)).await,
        ["workloads", name, "attach"] => attach(&app, &call, name).await,
        ["workloads", name, "descriptor"] => descriptor(&app, &call, name).await,
        ["networks"] => networks(&app, &call).await,
        // A network's name is a single label, so this takes nothing from `networks/NAME`.
        ["networks", "prune"] if call.method == Method::POST => prune(&app, &call).await,
        ["networks", name] => network(&app, &call, name).await,
        ["ports"] => ports(&app, &call).await,
        ["ports", "remove"] => remove_port(&app, &call).await,
        _ => Err(Refusal::new(ErrorCode::NotFound, "there is no such path in this API")),
    };
    result.unwrap_or_else(answer_refusal)
}

/// The text form of Prometheus.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

type Answered = Result<Response<Body>, Refusal>;

fn version(app: &App, call: &Call) -> Answered {
    match call.method {
        Method::GET => Ok(answer(StatusCode::OK, &app.version())),
        _ => not_allowed("GET"),
    }
}

async fn status(app: &App, call: &Call) -> Answered {
    match call.method {
        Method::GET => ok(app.status().await),
        _ => not_allowed("GET"),
    }
}

async fn metrics(app: &App, call: &Call) -> Answered {
    match call.method {
        Method::GET => {
            let text = app.metrics().await?;
            Ok(answer_as(METRICS, StatusCode::OK, text.into_bytes().into()))
        }
        _ => not_allowed("GET"),
    }
}

async fn flows(app: &App, call: &Call, workload: Option<&str>) -> Answered {
    match call.method {
        Method::GET => ok(app.flows(workload.map(str::to_owned)).await),
        _ => not_allowed("GET"),
    }
}

async fn capture(app: &App, call: &Call) -> Answered {
    match call.method {
        Method::POST => {
            let pipe = app.capture(call.json()?).await?;
            Ok(answer_as("application/x-pcapng", StatusCode::OK, pipe.into()))
        }
        _ => not_allowed("POST"),
    }
}

async fn stop(app: &App, call: &Call) -> Answered {
    match call.method {
        Method::POST => {
            app.stop(call.json()?).await;
            Ok(answer(StatusCode::OK, &serde_json::json!({})))
        }
        _ => not_allowed("POST"),
    }
}

async fn workloads(app: &Arc<App>, call: &Call) -> Answered {
    match call.method {
        Method::GET => ok(app.workloads().await),
        Method::POST => {
            let lease = app.create_workload(call.json()?).await?;
            Ok(answer(StatusCode::CREATED, &lease))
        }
        _ => not_allowed("GET, POST"),
    }
}

async fn workload(app: &App, call: &Call, name: &str) -> Answered {
    match call.method {
        Method::GET => ok(app.workload(name.to_owned()).await),
        Method::DELETE => {
            let running = if call.force { Running::Kill } else { Running::Refuse };
            ok(app.remove_workload(name.to_owned(), running).await)
        }
        _ => not_allowed("GET, DELETE"),
    }
}

async fn attach(app: &Arc<App>, call: &Call, name: &str) -> Answered {
    match call.method {
        Method::POST => ok(app.attach_workload(name.to_owned(), call.json()?).await),
        _ => not_allowed("POST"),
    }
}

async fn descriptor(app: &App, call: &Call, name: &str) -> Answered {
    match call.method {
        Method::POST if call.upgrade && call.is_empty() => {
            Ok(switching(app.frame_place(name.to_owned()).await?))
        }
        Method::POST => Err(Refusal::bad_request(format!(
            "a descriptor comes beside HTTP: ask with HTTP/1.1, `Connection: upgrade`, `Upgrade: \
             {DESCRIPTOR_UPGRADE}` and no body, or use: lichen vm plug"
        ))),
        _ => not_allowed("POST"),
    }
}

async fn networks(app: &App, call: &Call) -> Answered {
    match call.method {
        Method::GET => ok(app.networks(&call.filters()?).await),
        Method::POST => created(app.create_network(call.json()?).await?),
        _ => not_allowed("GET, POST"),
    }
}

async fn prune(app: &App, call: &Call) -> Answered {
    let request = if call.is_empty() { PruneNetworks::default() } else { call.json()? };
    ok(app.prune_networks(request).await)
}

async fn network(app: &App, call: &Call, name: &str) -> Answered {
    match call.method {
        Method::GET => ok(app.network(name.to_owned()).await),
        Method::DELETE => {
            let in_use = if call.force { InUse::Detach } else { InUse::Refuse };
            ok(app.remove_network(name.to_owned(), in_use).await)
        }
        _ => not_allowed("GET, DELETE"),
    }
}

async fn ports(app: &App, call: &Call) -> Answered {
    match call.method {
        Method::GET => ok(app.ports().await),
        Method::POST => created(app.add_port(call.json()?).await?),
        _ => not_allowed("GET, POST"),
    }
}

async fn remove_port(app: &App, call: &Call) -> Answered {
    match call.method {
        Method::POST => ok(app.remove_port(call.json()?).await),
        _ => not_allowed("POST"),
    }
}

fn ok(result: Result<impl Serialize, Refusal>) -> Answered {
    Ok(answer(StatusCode::OK, &result?))
}

/// 201 for what is new, 200 for what was there.
fn created((creation, value): (Creation, impl Serialize)) -> Answered {
    let status = match creation {
        Creation::New => StatusCode::CREATED,
        Creation::Existing => StatusCode::OK,
    };
    Ok(answer(status, &value))
}

fn not_allowed(methods: &str) -> Answered {
    Err(Refusal::new(ErrorCode::MethodNotAllowed, format!("this path knows {methods} only")))
}
