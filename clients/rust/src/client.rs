//! How a channel is set up for chats. gRPC's service config does not exist in tonic, so that this does what other
//! languages only declare: round robin, names resolved anew, retries, and a deadline that binds streams too.

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::PathBuf,
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
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri},
};
use tower::{
    retry::backoff::{Backoff, ExponentialBackoffMaker, MakeBackoff},
    util::rng::HasherRng,
};

use crate::{
    error::{told, words},
    v1::{
        CreateChatCompletionRequest, CreateChatCompletionResponse,
        CreateChatCompletionStreamResponse,
        chat_completion_service_client::ChatCompletionServiceClient,
    },
};

const DEFAULT_TARGET: &str = "127.0.0.1:50051";
const MAX_MESSAGE_BYTES: usize = 20 << 20;
/// The service takes a ping each 10 s; more often it ends the connection.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// As long as names live in Kubernetes, unless told otherwise.
const RESOLVE_AGAIN: Duration = Duration::from_secs(30);
const MAX_ATTEMPTS: usize = 3;
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
const JITTER: f64 = 0.2;

type Stub = ChatCompletionServiceClient<Channel>;
type Channels = BTreeMap<SocketAddr, Channel>;

/// Whom to trust: nobody is asked with `Off`, which is plaintext.
#[derive(Clone, Debug, Default)]
pub enum Tls {
    #[default]
    Off,
    SystemAuthorities,
    CaFile(PathBuf),
}

/// A connection to each address of the service. Clones share them.
#[derive(Clone)]
pub struct ChatClient {
    channels: watch::Receiver<Channels>,
    turn: Arc<AtomicUsize>,
    authorization: Option<AsciiMetadataValue>,
}

impl ChatClient {
    /// `target` is host:port, else the variable CHATRPC_TARGET, else 127.0.0.1:50051. The key is that of the variable
    /// CHATRPC_API_KEY, if it is set. Fails if no address of the name can be connected to.
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

    /// The whole answer. `timeout` binds the call with all its attempts, up to the model; None leaves it to the service.
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

    /// The answer as it comes. To drop it cancels the call, and the model stops.
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

    /// UNAVAILABLE is tried again, each time at the next address. The service sends no headers before its first message,
    /// so that what has begun to answer is never asked twice.
    async fn call<T>(
        &self,
        request: Request<CreateChatCompletionRequest>,
        deadline: Option<Instant>,
        method: impl AsyncFn(Stub, Request<CreateChatCompletionRequest>) -> Result<Response<T>, Status>,
    ) -> Result<Response<T>, Status> {
        let (mut metadata, _, message) = request.into_parts();
        if message.encoded_len() > MAX_MESSAGE_BYTES {
            // tonic's own limit would say OUT_OF_RANGE, where all others say this.
            return Err(Status::resource_exhausted(format!(
                "the request has {} bytes, and may have {MAX_MESSAGE_BYTES}",
                message.encoded_len()
            )));
        }
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut backoff =
            ExponentialBackoffMaker::new(MIN_BACKOFF, MAX_BACKOFF, JITTER, HasherRng::default())
                .expect("constants that fit together")
                .make_backoff();
        let mut attempt = 0;
        within(deadline, async {
            loop {
                let mut request =
                    Request::from_parts(metadata.clone(), Extensions::new(), message.clone());
                if let Some(deadline) = deadline {
                    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
                }
                let result = method(self.stub(first + attempt), request)
                    .await
                    .map_err(told);
                attempt += 1;
                match result {
                    Err(status) if status.code() == Code::Unavailable && attempt < MAX_ATTEMPTS => {
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
        Stub::new(channel.expect("never without an address").clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// The messages of an answer.
pub struct Chunks {
    inner: Streaming<CreateChatCompletionStreamResponse>,
    deadline: Option<Instant>,
}

impl Chunks {
    /// The next one; None only if the answer is whole. tonic's own timeout ends with the headers, so it is kept here.
    pub async fn message(&mut self) -> Result<Option<CreateChatCompletionStreamResponse>, Status> {
        within(self.deadline, self.inner.message())
            .await
            .map_err(told)
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
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the deadline has passed"))),
    }
}

/// The name of the service, and how its addresses are connected to.
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
                Status::invalid_argument(format!("the target is host:port, and not {target:?}"))
            })?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let config = ClientTlsConfig::new().domain_name(host);
        let tls = match tls {
            Tls::Off => None,
            Tls::SystemAuthorities => Some(config.with_native_roots()),
            Tls::CaFile(path) => {
                let pem = fs::read(path).map_err(|error| {
                    Status::invalid_argument(format!("{}: {error}", path.display()))
                })?;
                Some(config.ca_certificate(Certificate::from_pem(pem)))
            }
        };
        Ok(Self { uri, tls })
    }

    /// A channel for each address of the name that answers; those that are known stay. tonic's `balance_channel` would
    /// pick at random, and again and again one that refuses.
    async fn connect(&self, known: &Channels) -> Result<Channels, Status> {
        let name = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let mut channels = Channels::new();
        let mut failure = Status::unavailable(format!("{name} has no address"));
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
                    failure = Status::unavailable(format!("{address}: {}", words(&error)))
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
        let wrong = |error| Status::invalid_argument(words(&error));
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(wrong)?
            .origin(self.uri.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(false);
        match &self.tls {
            None => Ok(endpoint),
            Some(tls) => endpoint.tls_config(tls.clone()).map_err(wrong),
        }
    }

    /// Pods come and go: asks for the name's addresses until all clients are gone.
    async fn follow(self, channels: watch::Sender<Channels>) {
        while timeout(RESOLVE_AGAIN, channels.closed()).await.is_err() {
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
        .ok_or_else(|| Status::invalid_argument("CHATRPC_API_KEY cannot be sent as a header"))?;
    value.set_sensitive(true);
    Ok(value)
}
