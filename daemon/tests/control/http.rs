//! The API over its socket: who may speak, and what is refused.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::simulated::{Control, Scratch, SimulatedDatapath, SimulatedNamespaces};
use lichen_api::{
    Client, ClientError, CreateNetwork, Creation, ErrorCode, Filters, Force, PruneNetworks,
};
use lichen_daemon::{http, instance::Instance};

/// A control that listens.
pub(crate) struct Served {
    pub(crate) control: Control,
    pub(crate) datapath: SimulatedDatapath,
    socket: PathBuf,
    _instance: Instance,
    _scratch: Scratch,
}

impl Served {
    pub(crate) fn start(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let datapath = SimulatedDatapath::default();
        let control = Control::start(&scratch, &datapath, &SimulatedNamespaces::default());
        let instance = Instance::claim(&scratch.directories().runtime).unwrap();
        let listener = instance.listen().unwrap();
        let app = Arc::clone(&control.app);
        control.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            tokio::spawn(http::serve(listener, app));
        });
        let socket = scratch.directories().runtime.control_socket();
        Self { control, datapath, socket, _instance: instance, _scratch: scratch }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// A connection on which nothing has been said.
    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes as they are, and answers what comes back until the other side closes.
    pub(crate) fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // It may answer and close before everything is sent.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn post(&self, path: &str, body: &[u8]) -> String {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: lichen\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }
}

#[test]
fn the_client_and_the_daemon_understand_each_other() {
    let served = Served::start("client");
    let client = served.client();
    served.control.block_on(async {
        assert_eq!(client.version().await.unwrap().version, lichen_api::VERSION);
        let request = CreateNetwork { name: "mynet".into(), ..CreateNetwork::default() };
        let (creation, network) = client.create_network(&request).await.unwrap();
        assert_eq!((creation, network.id.len()), (Creation::New, 64));
        assert_eq!(client.create_network(&request).await.unwrap().0, Creation::Existing);
        assert_eq!(client.network(&network.id[..12]).await.unwrap().name, "mynet");
        let summaries = client.networks(&Filters::default()).await.unwrap();
        assert_eq!(summaries[1].id, network.id[..12]);
        client.remove_network("mynet", Force::No).await.unwrap();
        let error = client.network("mynet").await.unwrap_err();
        assert!(matches!(error, ClientError::Refused { code: ErrorCode::NotFound, .. }));
    });
}

#[test]
fn a_network_says_whether_it_has_nat64_and_one_without_a_way_for_it_is_refused() {
    let served = Served::start("nat64");
    let client = served.client();
    let six = CreateNetwork { name: "six".into(), nat64: true, ..CreateNetwork::default() };
    served.control.block_on(async {
        assert!(client.create_network(&six).await.unwrap().1.nat64);
        assert_eq!(client.create_network(&six).await.unwrap().0, Creation::Existing);
        assert!(!client.network("bridge").await.unwrap().nat64);
        let other = CreateNetwork { nat64: false, ..six.clone() };
        let error = client.create_network(&other).await.unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        let bad = CreateNetwork { name: "bad".into(), ..six.clone() };
        for (request, told) in [
            (CreateNetwork { internal: true, ..bad.clone() }, "leave out --internal"),
            (CreateNetwork { enable_ipv6: Some(false), ..bad.clone() }, "leave out --ipv6=false"),
        ] {
            let error = client.create_network(&request).await.unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    });
}

#[test]
fn networks_are_listed_and_pruned_by_filters() {
    let served = Served::start("filters");
    let client = served.client();
    let filters = |key: &str, value: &str| Filters([(key.into(), vec![value.into()])].into());
    served.control.block_on(async {
        for (name, label) in [("front end", "a+b&c=d e%"), ("back", "plain")] {
            let labels = [("tier".to_owned(), label.to_owned())].into();
            let name = name.replace(' ', "-");
            let request = CreateNetwork { name, labels, ..CreateNetwork::default() };
            client.create_network(&request).await.unwrap();
        }
        let listed = async |filters| -> Vec<String> {
            let listed = client.networks(&filters).await.unwrap();
            listed.into_iter().map(|network| network.name).collect()
        };
        assert_eq!(listed(filters("label", "tier=a+b&c=d e%")).await, ["front-end"]);
        assert_eq!(listed(filters("type", "custom")).await, ["front-end", "back"]);
        let error = client.networks(&filters("color", "red")).await.unwrap_err();
        assert!(error.to_string().contains("there are: driver, id,"), "{error}");
        let old = PruneNetworks { filters: filters("until", "1h") };
        assert!(client.prune_networks(&old).await.unwrap().networks_deleted.is_empty());
        let labelled = PruneNetworks { filters: filters("label!", "tier=plain") };
        let pruned = client.prune_networks(&labelled).await.unwrap();
        assert_eq!(pruned.networks_deleted, ["front-end"]);
        assert_eq!(listed(Filters::default()).await, ["bridge", "back"]);
    });
    let get = |query: &str| {
        let head =
            format!("GET /v1/networks?{query} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        served.raw(head.as_bytes())
    };
    for query in ["filters=", "filters=%f", "filters=[]", "filters=%7B%22name%22:%22x%22%7D"] {
        assert!(get(query).starts_with("HTTP/1.1 400"), "{query}: {}", get(query));
    }
    assert!(get("other=1").starts_with("HTTP/1.1 200"));
    assert!(served.post("/v1/networks/prune", b"{}x").starts_with("HTTP/1.1 400"));
    assert!(served.post("/v1/networks/prune", b"").contains(r#"["back"]"#), "as Docker asks");
}

#[test]
fn bodies_that_are_too_long_too_deep_or_odd_are_refused() {
    let served = Served::start("bodies");
    let long = vec![b' '; 70_000];
    assert!(served.post("/v1/networks", &long).starts_with("HTTP/1.1 413"));
    let claimed = b"POST /v1/networks HTTP/1.1\r\nhost: x\r\ncontent-length: 1073741824\r\n\r\n";
    assert!(served.raw(claimed).starts_with("HTTP/1.1 413"));
    let mut chunked =
        b"POST /v1/networks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..80 {
        chunked.extend_from_slice(b"400\r\n");
        chunked.extend_from_slice(&[b' '; 0x400]);
        chunked.extend_from_slice(b"\r\n");
    }
    assert!(served.raw(&chunked).starts_with("HTTP/1.1 413"));
    let deep = [vec![b'['; 30_000], vec![b']'; 30_000]].concat();
    for body in [
        deep.as_slice(),
        br#"{"name":"a","name":"b"}"#,
        br#"{"name":"a","unknown":1}"#,
        br#"{"name":1e400}"#,
        br#"{"name":"../../x"}"#,
        br#"{"name":"a/b"}"#,
        br#"{"name":"a\u0000b"}"#,
        br#"{"name":"con"}"#,
        br#"{"name":"a","subnet":"fd00::/64"}"#,
        br#"{"name":"a","gateway":"10.0.0.1"}"#,
        br#"{"name":"a","subnet":"10.99.0.0/16","gateway":"fd12::1"}"#,
        br#"{"name":"a","gateway6":"fd12:0:0:1::1"}"#,
        br#"{"name":"a","subnet6":"fd12:0:0:1::/64","gateway6":"10.0.0.1"}"#,
        br#"{"name":"a","subnet6":"fd12:0:0:1::/64","gateway6":"fd12:0:0:2::1"}"#,
        br#"{"name":"a","subnet6":"fd12:0:0:1::/64","gateway6":"fd12:0:0:1::1","enable_ipv6":false}"#,
        b"",
        b"null",
        b"\xff",
    ] {
        let answer = served.post("/v1/networks", body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400"), "{shown}: {answer}");
        assert!(answer.contains(r#"{"error":{"code":"bad_request""#), "{shown}: {answer}");
    }
    let ports = br#"{"host":{"start":1,"end":60000},"target":"web","target_ports":{"start":1,"end":60000}}"#;
    assert!(served.post("/v1/ports", ports).starts_with("HTTP/1.1 400"));
    served.control.block_on(async {
        assert_eq!(served.client().networks(&Filters::default()).await.unwrap().len(), 1);
    });
}

#[test]
fn hundreds_of_idle_connections_do_not_keep_an_honest_one_waiting() {
    let served = Served::start("idle");
    let idle: Vec<UnixStream> =
        (0..500).filter_map(|_| UnixStream::connect(&served.socket).ok()).collect();
    let begun = Instant::now();
    served.control.block_on(served.client().status()).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(idle);
}

#[test]
fn a_client_of_another_version_is_told_how_to_mend_it() {
    let served = Served::start("skew");
    let get = |path: &str| {
        served.raw(
            format!(
                "GET {path} HTTP/1.1\r\nhost: x\r\nlichen-version: 9.9.9\r\nconnection: close\r\n\r\n"
            )
            .as_bytes(),
        )
    };
    let refused = get("/v1/networks");
    assert!(refused.starts_with("HTTP/1.1 409") && refused.contains("daemon restart"), "{refused}");
    assert!(get("/v1/version").starts_with("HTTP/1.1 200"));
    assert!(get("/v2/networks").starts_with("HTTP/1.1 404"));
}

#[test]
fn a_process_in_a_workload_may_not_speak() {
    let served = Served::start("peer");
    // The simulated namespaces put every process in one of its own, so this one can be "attached".
    let this = i32::try_from(std::process::id()).unwrap();
    let body = format!(r#"{{"kind":"attach","name":"self","process":{{"pid":{this}}}}}"#);
    let attached = served.post("/v1/workloads", body.as_bytes());
    assert!(attached.starts_with("HTTP/1.1 201"), "{attached}");
    let refused = served.post("/v1/networks", br#"{"name":"mine"}"#);
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
}
