//! The client and its channels. Because tonic has no service config, this module implements the features that other
//! languages declare: round robin, repeated name resolution, retries, and a deadline that applies to streams too.

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prost::Message;
use tokio::{
    net::lookup_host,
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tonic::{
    Code, Extensions, IntoRequest, Request, Response, Status, Streaming,
    metadata::AsciiMetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri},
};
use tower::{
    retry::backoff::{Backoff, ExponentialBackoffMaker, MakeBackoff},
    util::rng::HasherRng,
};

use crate::{
    error::{grpc_status, message_chain},
    v1::{
        CreateChatCompletionRequest, CreateChatCompletionResponse,
        CreateChatCompletionStreamResponse,
        chat_completion_service_client::ChatCompletionServiceClient,
    },
};

const DEFAULT_TARGET: &str = "127.0.0.1:50051";
const MAX_MESSAGE_BYTES: usize = 20 << 20;
/// The service accepts one ping per 10 s and closes the connection if pings come more often.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The default TTL of names in Kubernetes.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
const RETRYABLE: [Code; 2] = [Code::Unavailable, Code::Cancelled];
const MAX_ATTEMPTS: usize = 3;
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
const JITTER: f64 = 0.2;

type Stub = ChatCompletionServiceClient<Channel>;
type Channels = BTreeMap<SocketAddr, Channel>;

/// The authorities to trust, in PEM files. `Off` is plaintext. `Mutual` also presents a client certificate (mTLS); it
/// trusts the system's authorities if `ca_file` is None.
#[derive(Clone, Debug, Default)]
pub enum Tls {
    #[default]
    Off,
    SystemAuthorities,
    CaFile(PathBuf),
    Mutual {
        ca_file: Option<PathBuf>,
        cert_file: PathBuf,
        key_file: PathBuf,
    },
}

impl Tls {
    fn config(&self) -> Result<Option<ClientTlsConfig>, Status> {
        match self {
            Tls::Off => Ok(None),
            Tls::SystemAuthorities => Self::trust(None).map(Some),
            Tls::CaFile(path) => Self::trust(Some(path)).map(Some),
            Tls::Mutual {
                ca_file,
                cert_file,
                key_file,
            } => {
                let identity = Identity::from_pem(read(cert_file)?, read(key_file)?);
                // Because an error of the connection would not name the files.
                Endpoint::from_static("https://localhost")
                    .tls_config(ClientTlsConfig::new().identity(identity.clone()))
                    .map_err(|error| {
                        Status::invalid_argument(format!(
                            "{}, {}: {}; use PEM files of a certificate and its unencrypted key",
                            cert_file.display(),
                            key_file.display(),
                            message_chain(&error)
                        ))
                    })?;
                Ok(Some(Self::trust(ca_file.as_deref())?.identity(identity)))
            }
        }
    }

    fn trust(ca_file: Option<&Path>) -> Result<ClientTlsConfig, Status> {
        let config = ClientTlsConfig::new();
        match ca_file {
            None => Ok(config.with_native_roots()),
            Some(path) => Ok(config.ca_certificate(Certificate::from_pem(read(path)?))),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Status> {
    fs::read(path).map_err(|error| Status::invalid_argument(format!("{}: {error}", path.display())))
}

/// A client with a connection to each address of the service. Clones share the connections.
#[derive(Clone)]
pub struct ChatClient {
    channels: watch::Receiver<Channels>,
    turn: Arc<AtomicUsize>,
    authorization: Option<AsciiMetadataValue>,
}

impl ChatClient {
    /// Connects to `target`: host:port, else the variable CHATRPC_TARGET, else 127.0.0.1:50051. Each call sends the key
    /// in the variable CHATRPC_API_KEY, if it is set. Fails if no address of the name accepts a connection.
    pub async fn connect(target: Option<String>, tls: &Tls) -> Result<Self, Status> {
        let target = target
            .or_else(|| variable("CHATRPC_TARGET"))
            .unwrap_or_else(|| DEFAULT_TARGET.into());
        let service = Service::new(&target, tls)?;
        let authorization = variable("CHATRPC_API_KEY").map(bearer).transpose()?;
        let (sender, channels) = watch::channel(service.connect(&Channels::new()).await?);
        tokio::spawn(service.follow(sender));
        Ok(Self {
            channels,
            turn: Arc::default(),
            authorization,
        })
    }

    /// Returns the complete response. `timeout` applies to all attempts, up to the model; if None, the service sets it.
    pub async fn complete(
        &self,
        request: impl IntoRequest<CreateChatCompletionRequest>,
        timeout: Option<Duration>,
    ) -> Result<Response<CreateChatCompletionResponse>, Status> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        self.call(
            request.into_request(),
            deadline,
            async |mut stub, request| stub.create_chat_completion(request).await,
        )
        .await
    }

    /// Returns the response as a stream. Dropping it cancels the call, and the model stops.
    pub async fn stream(
        &self,
        request: impl IntoRequest<CreateChatCompletionRequest>,
        timeout: Option<Duration>,
    ) -> Result<Response<Chunks>, Status> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let response = self
            .call(
                request.into_request(),
                deadline,
                async |mut stub, request| stub.create_chat_completion_stream(request).await,
            )
            .await?;
        Ok(response.map(|inner| Chunks { inner, deadline }))
    }

    /// Makes a call and retries UNAVAILABLE and CANCELLED, each time at the next address. A response that has begun is
    /// never retried, because the service sends no headers before its first message. A server reports CANCELLED for a
    /// call that it had not begun when it stopped (grpc/grpc#41785); a cancel by the caller drops this future.
    async fn call<T>(
        &self,
        request: Request<CreateChatCompletionRequest>,
        deadline: Option<Instant>,
        method: impl AsyncFn(Stub, Request<CreateChatCompletionRequest>) -> Result<Response<T>, Status>,
    ) -> Result<Response<T>, Status> {
        let (mut metadata, _, message) = request.into_parts();
        if message.encoded_len() > MAX_MESSAGE_BYTES {
            // Because tonic's own limit reports OUT_OF_RANGE, unlike the other languages.
            return Err(Status::resource_exhausted(format!(
                "request: {} bytes exceed the limit of {MAX_MESSAGE_BYTES}; send less",
                message.encoded_len()
            )));
        }
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut backoff =
            ExponentialBackoffMaker::new(MIN_BACKOFF, MAX_BACKOFF, JITTER, HasherRng::default())
                .expect("the constants are valid")
                .make_backoff();
        let mut attempt = 0;
        within(deadline, async {
            loop {
                let mut request =
                    Request::from_parts(metadata.clone(), Extensions::new(), message.clone());
                if let Some(deadline) = deadline {
                    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
                }
                let result = method(self.stub(turn + attempt), request)
                    .await
                    .map_err(grpc_status);
                attempt += 1;
                match result {
                    Err(status) if RETRYABLE.contains(&status.code()) && attempt < MAX_ATTEMPTS => {
                        backoff.next_backoff().await;
                    }
                    result => return result,
                }
            }
        })
        .await
    }

    fn stub(&self, turn: usize) -> Stub {
        let channels = self.channels.borrow();
        let channel = channels.values().nth(turn % channels.len());
        Stub::new(channel.expect("at least one address").clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// The messages of a response.
pub struct Chunks {
    inner: Streaming<CreateChatCompletionStreamResponse>,
    deadline: Option<Instant>,
}

impl Chunks {
    /// Returns the next message, or None if the response is complete. Enforces the deadline, because tonic's own
    /// timeout covers the headers only.
    pub async fn message(&mut self) -> Result<Option<CreateChatCompletionStreamResponse>, Status> {
        within(self.deadline, self.inner.message())
            .await
            .map_err(grpc_status)
    }
}

async fn within<T>(
    deadline: Option<Instant>,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match deadline {
        None => call.await,
        Some(deadline) => timeout_at(deadline, call)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("deadline exceeded"))),
    }
}

/// The address of the service and its TLS settings.
struct Service {
    uri: Uri,
    tls: Option<ClientTlsConfig>,
}

impl Service {
    fn new(target: &str, tls: &Tls) -> Result<Self, Status> {
        let name = target.strip_prefix("dns:///").unwrap_or(target);
        let scheme = if matches!(tls, Tls::Off) {
            "http"
        } else {
            "https"
        };
        let uri = format!("{scheme}://{name}")
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.port().is_some() && uri.path() == "/")
            .ok_or_else(|| {
                Status::invalid_argument(format!("target: {target:?} is invalid; use host:port"))
            })?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let tls = tls.config()?.map(|config| config.domain_name(host));
        Ok(Self { uri, tls })
    }

    /// Returns a channel for each address of the name that accepts a connection; known channels stay. tonic's
    /// `balance_channel` would choose at random, including an address that refuses connections.
    async fn connect(&self, known: &Channels) -> Result<Channels, Status> {
        let name = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let mut channels = Channels::new();
        let mut failure = Status::unavailable(format!("{name}: no address"));
        let addresses = lookup_host(name)
            .await
            .map_err(|error| Status::unavailable(format!("{name}: {error}")))?;
        for address in addresses {
            let connected = match known.get(&address) {
                Some(channel) => Ok(channel.clone()),
                None => self.endpoint(address)?.connect().await,
            };
            match connected {
                Ok(channel) => drop(channels.insert(address, channel)),
                Err(error) => {
                    failure = Status::unavailable(format!("{address}: {}", message_chain(&error)))
                }
            }
        }
        if channels.is_empty() {
            Err(failure)
        } else {
            Ok(channels)
        }
    }

    fn endpoint(&self, address: SocketAddr) -> Result<Endpoint, Status> {
        let invalid = |error| Status::invalid_argument(message_chain(&error));
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(invalid)?
            .origin(self.uri.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(false);
        match &self.tls {
            None => Ok(endpoint),
            Some(tls) => endpoint.tls_config(tls.clone()).map_err(invalid),
        }
    }

    /// Resolves the name repeatedly, because pods come and go, until all clients are dropped.
    async fn follow(self, channels: watch::Sender<Channels>) {
        while timeout(RESOLVE_INTERVAL, channels.closed()).await.is_err() {
            let known = channels.borrow().clone();
            if let Ok(now) = self.connect(&known).await {
                channels.send_replace(now);
            }
        }
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn bearer(key: String) -> Result<AsciiMetadataValue, Status> {
    let mut value = AsciiMetadataValue::try_from(format!("Bearer {key}"))
        .ok()
        .filter(|_| key.is_ascii())
        .ok_or_else(|| {
            Status::invalid_argument(
                "CHATRPC_API_KEY: invalid header value; use printable ASCII only",
            )
        })?;
    value.set_sensitive(true);
    Ok(value)
}
