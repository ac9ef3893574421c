//! The Rust driver of clients/conformance: reads one call per line, writes one result per line.

use std::{collections::HashMap, env, error::Error, io, process::ExitCode, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use chatrpc_client::{ChatClient, ChatError, Chunks, Tls, v1::CreateChatCompletionRequest};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tonic::{
    Request, Status,
    metadata::{AsciiMetadataKey, MetadataMap},
};

#[derive(Deserialize)]
struct Call {
    name: String,
    method: String,
    request: String,
    metadata: HashMap<String, String>,
    timeout_ms: u64,
    cancel_after: Option<usize>,
    cancel_after_ms: Option<u64>,
    #[serde(default)]
    pause_ms: u64,
}

#[derive(Default, Serialize)]
struct Outcome {
    name: String,
    code: String,
    message: String,
    reason: String,
    mapped_reason: String,
    retry_after_ms: Option<u128>,
    fields: Vec<(String, String)>,
    upstream_status: Option<i32>,
    request_id: String,
    messages: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(target) = env::args().nth(1) else {
        eprintln!("usage: conformance HOST:PORT < calls");
        return ExitCode::from(2);
    };
    match drive(target).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("conformance: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn drive(target: String) -> Result<(), Box<dyn Error>> {
    let client = ChatClient::connect(Some(target), &Tls::Off)
        .await
        .map_err(ChatError::from)?;
    for line in io::stdin().lines() {
        let outcome = make(&client, serde_json::from_str(&line?)?).await?;
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(())
}

async fn make(client: &ChatClient, call: Call) -> Result<Outcome, Box<dyn Error>> {
    let mut outcome = Outcome {
        name: call.name.clone(),
        code: "OK".into(),
        ..Outcome::default()
    };
    let request = CreateChatCompletionRequest::decode(&*BASE64_STANDARD.decode(&call.request)?)?;
    let mut request = Request::new(request);
    for (key, value) in &call.metadata {
        request
            .metadata_mut()
            .insert(key.parse::<AsciiMetadataKey>()?, value.parse()?);
    }
    if let Err(status) = perform(client, &call, request, &mut outcome).await {
        let error = ChatError::from(status);
        outcome.code = error.code_name();
        outcome.message = error.message;
        outcome.reason = error.reason;
        outcome.mapped_reason = error.mapped_reason;
        outcome.retry_after_ms = error.retry_after.map(|after| after.as_millis());
        outcome.fields = error.fields;
        outcome.upstream_status = error.upstream.map(|upstream| upstream.http_status);
        if outcome.request_id.is_empty() {
            outcome.request_id = error.request_id;
        }
    }
    Ok(outcome)
}

async fn perform(
    client: &ChatClient,
    call: &Call,
    request: Request<CreateChatCompletionRequest>,
    outcome: &mut Outcome,
) -> Result<(), Status> {
    let timeout = (call.timeout_ms > 0).then(|| Duration::from_millis(call.timeout_ms));
    if call.method == "CreateChatCompletion" {
        let response = client.complete(request, timeout).await?;
        outcome.request_id = request_id(response.metadata());
        outcome.messages.push(encoded(response.get_ref()));
        return Ok(());
    }
    let starting = client.stream(request, timeout);
    let response = match call.cancel_after_ms.map(Duration::from_millis) {
        None => starting.await?,
        // The call must not start to respond before that, so that dropping this future cancels it.
        Some(limit) => tokio::time::timeout(limit, starting)
            .await
            .map_err(|_| Status::cancelled("dropped"))??,
    };
    outcome.request_id = request_id(response.metadata());
    read(response.into_inner(), call, outcome).await
}

async fn read(mut chunks: Chunks, call: &Call, outcome: &mut Outcome) -> Result<(), Status> {
    loop {
        sleep(Duration::from_millis(call.pause_ms)).await;
        let Some(chunk) = chunks.message().await? else {
            return Ok(());
        };
        outcome.messages.push(encoded(&chunk));
        if call.cancel_after == Some(outcome.messages.len()) {
            // Dropping the stream cancels the call; after that no status can be read.
            return Err(Status::cancelled("dropped"));
        }
    }
}

fn request_id(metadata: &MetadataMap) -> String {
    let id = metadata.get("x-request-id").and_then(|id| id.to_str().ok());
    id.unwrap_or_default().into()
}

fn encoded(message: &impl Message) -> String {
    BASE64_STANDARD.encode(message.encode_to_vec())
}
