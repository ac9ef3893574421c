//! The driver of clients/conformance, with this client: calls in, a line each; what was seen out, a line each.

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
    #[serde(default)]
    pause_ms: u64,
}

#[derive(Default, Serialize)]
struct Seen {
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
        let seen = see(&client, serde_json::from_str(&line?)?).await?;
        println!("{}", serde_json::to_string(&seen)?);
    }
    Ok(())
}

async fn see(client: &ChatClient, call: Call) -> Result<Seen, Box<dyn Error>> {
    let mut seen = Seen {
        name: call.name.clone(),
        code: "OK".into(),
        ..Seen::default()
    };
    let request = CreateChatCompletionRequest::decode(&*BASE64_STANDARD.decode(&call.request)?)?;
    let mut request = Request::new(request);
    for (key, value) in &call.metadata {
        request
            .metadata_mut()
            .insert(key.parse::<AsciiMetadataKey>()?, value.parse()?);
    }
    if let Err(status) = make(client, &call, request, &mut seen).await {
        let error = ChatError::from(status);
        seen.code = error.code_name();
        seen.message = error.message;
        seen.reason = error.reason;
        seen.mapped_reason = error.mapped_reason;
        seen.retry_after_ms = error.retry_after.map(|after| after.as_millis());
        seen.fields = error.fields;
        seen.upstream_status = error.upstream.map(|upstream| upstream.http_status);
        if seen.request_id.is_empty() {
            seen.request_id = error.request_id;
        }
    }
    Ok(seen)
}

async fn make(
    client: &ChatClient,
    call: &Call,
    request: Request<CreateChatCompletionRequest>,
    seen: &mut Seen,
) -> Result<(), Status> {
    let timeout = (call.timeout_ms > 0).then(|| Duration::from_millis(call.timeout_ms));
    if call.method == "CreateChatCompletion" {
        let response = client.complete(request, timeout).await?;
        seen.request_id = request_id(response.metadata());
        seen.messages.push(encoded(response.get_ref()));
        return Ok(());
    }
    let response = client.stream(request, timeout).await?;
    seen.request_id = request_id(response.metadata());
    read(response.into_inner(), call, seen).await
}

async fn read(mut chunks: Chunks, call: &Call, seen: &mut Seen) -> Result<(), Status> {
    loop {
        sleep(Duration::from_millis(call.pause_ms)).await;
        let Some(chunk) = chunks.message().await? else {
            return Ok(());
        };
        seen.messages.push(encoded(&chunk));
        if call.cancel_after == Some(seen.messages.len()) {
            // A stream that is dropped is cancelled, and can tell no status any more.
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
