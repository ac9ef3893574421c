//! Examples of each use of chatrpc from Rust. Run it against `make serve`.

use std::{
    error::Error,
    fmt::Display,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use chatrpc_client::{
    ChatClient, ChatError, Tls,
    v1::{
        ChatMessage, ContentPart, CreateChatCompletionRequest, CreateChatCompletionResponse,
        FunctionDefinition, ImageUrl, Tool, ToolChoice, content_part::Part, tool_choice::Choice,
    },
};
use pico_args::Arguments;
use tonic::Status;

const USAGE: &str = "tour [--target HOST:PORT] [--tls] [--ca-file FILE] [--cert FILE --key FILE] [--model NAME] \
                     [--image-bytes N] [--timeout SECONDS]";

struct Args {
    target: Option<String>,
    tls: Tls,
    model: String,
    image_bytes: usize,
    timeout: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = match parse(Arguments::from_env()) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("chatrpc: {error}; usage: {USAGE}");
            return ExitCode::from(2);
        }
    };
    match run_examples(args).await.map_err(ChatError::from) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line: Vec<_> = error
                .to_string()
                .split_whitespace()
                .map(String::from)
                .collect();
            eprintln!("chatrpc: {}", line.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: Arguments) -> Result<Args, Box<dyn Error>> {
    let args = Args {
        target: arguments.opt_value_from_str("--target")?,
        tls: credentials(
            arguments.contains("--tls"),
            arguments.opt_value_from_str("--ca-file")?,
            arguments.opt_value_from_str("--cert")?,
            arguments.opt_value_from_str("--key")?,
        )?,
        model: arguments
            .opt_value_from_str("--model")?
            .unwrap_or_else(|| "echo".into()),
        image_bytes: arguments
            .opt_value_from_str("--image-bytes")?
            .unwrap_or(5 << 20),
        timeout: Duration::try_from_secs_f64(
            arguments.opt_value_from_str("--timeout")?.unwrap_or(60.0),
        )?,
    };
    match arguments.finish().first() {
        None => Ok(args),
        Some(unknown) => Err(format!("{}: unknown argument; remove it", unknown.display()).into()),
    }
}

async fn run_examples(args: Args) -> Result<(), Status> {
    let (model, timeout) = (args.model.as_str(), args.timeout);
    let client = channel(args.target, &args.tls).await?;
    unary(&client, model, timeout).await?;
    stream(&client, model, timeout).await?;
    deadline(&client).await?;
    cancel(&client, timeout).await?;
    error(&client).await?;
    tools(&client, model, timeout).await?;
    image(&client, model, timeout, args.image_bytes).await
}

/// Opens a channel. src/client.rs sets keepalive, round robin, retries and 20 MiB.
async fn channel(target: Option<String>, tls: &Tls) -> Result<ChatClient, Status> {
    ChatClient::connect(target, tls).await
}

/// Chooses no TLS, the system's authorities or a CA file, and a client certificate for mTLS. The client reads the API
/// key from CHATRPC_API_KEY.
fn credentials(
    tls: bool,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
) -> Result<Tls, &'static str> {
    Ok(match (ca_file, cert_file, key_file) {
        (ca_file, Some(cert_file), Some(key_file)) => Tls::Mutual {
            ca_file,
            cert_file,
            key_file,
        },
        (Some(file), None, None) => Tls::CaFile(file),
        (None, None, None) if tls => Tls::SystemAuthorities,
        (None, None, None) => Tls::Off,
        _ => return Err("--cert, --key: one is missing; give both"),
    })
}

/// Sends a request and receives the complete response.
async fn unary(client: &ChatClient, model: &str, timeout: Duration) -> Result<(), Status> {
    let request = CreateChatCompletionRequest {
        temperature: Some(0.2),
        ..request(model, vec![hello()])
    };
    let response = client.complete(request, Some(timeout)).await?.into_inner();
    show("unary", message(response)?.content())
}

/// Receives the response piece by piece. It ends without an error only if the response is complete.
async fn stream(client: &ChatClient, model: &str, timeout: Duration) -> Result<(), Status> {
    let request = request(model, vec![hello()]);
    let mut chunks = client.stream(request, Some(timeout)).await?.into_inner();
    let mut usage = None;
    let mut out = io::stdout();
    write!(out, "{:<10}", "stream")?;
    while let Some(chunk) = chunks.message().await? {
        for choice in chunk.choices.iter().filter(|choice| choice.index == 0) {
            write!(
                out,
                "{}",
                choice.delta.as_ref().map_or("", |delta| delta.content())
            )?;
            out.flush()?;
        }
        usage = chunk.usage.or(usage);
    }
    match usage {
        Some(usage) => writeln!(
            out,
            " ({} tokens in, {} out)",
            usage.prompt_tokens, usage.completion_tokens
        )?,
        None => writeln!(out, " (usage not reported)")?,
    }
    Ok(())
}

/// Sets a deadline. It applies up to the model: after it, the call stops everywhere.
async fn deadline(client: &ChatClient) -> Result<(), Status> {
    let request = request("echo:delay=30", vec![hello()]);
    match client
        .complete(request, Some(Duration::from_millis(300)))
        .await
    {
        Err(status) => show("deadline", ChatError::from(status).code_name()),
        Ok(_) => Ok(()),
    }
}

/// Leaves a stream early: dropping it cancels the call, and the model stops.
async fn cancel(client: &ChatClient, timeout: Duration) -> Result<(), Status> {
    let request = request("echo:pieces=999,pace=0.02", vec![hello()]);
    let mut chunks = client.stream(request, Some(timeout)).await?.into_inner();
    let mut messages = 0;
    while messages < 3 && chunks.message().await?.is_some() {
        messages += 1;
    }
    drop(chunks);
    show("cancel", format!("stopped after {messages} messages"))
}

/// Reads an error: its code, its reason, the time to wait before a retry and the upstream's HTTP status.
async fn error(client: &ChatClient) -> Result<(), Status> {
    let request = request("echo:status=429,retry_after=7", vec![hello()]);
    let Err(status) = client.complete(request, Some(Duration::from_secs(5))).await else {
        return Ok(());
    };
    let failed = ChatError::from(status);
    let mut line = format!("{} {}", failed.code_name(), failed.reason);
    if let Some(after) = failed.retry_after {
        line += &format!(", retry in {} s", after.as_secs_f64());
    }
    if let Some(upstream) = failed.upstream {
        line += &format!(", upstream's HTTP status {}", upstream.http_status);
    }
    show("error", line)
}

/// Lets the model call a function, then sends the function's result with the rest of the chat.
async fn tools(client: &ChatClient, model: &str, timeout: Duration) -> Result<(), Status> {
    let parameters =
        r#"{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}"#;
    let weather = Tool {
        function: Some(FunctionDefinition {
            name: "weather".into(),
            parameters_json: Some(parameters.into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let request_with_tools = CreateChatCompletionRequest {
        tools: vec![weather.clone()],
        tool_choice: Some(ToolChoice {
            choice: Some(Choice::Mode("required".into())),
        }),
        ..request(model, vec![hello()])
    };
    let reply = message(
        client
            .complete(request_with_tools, Some(timeout))
            .await?
            .into_inner(),
    )?;
    let call = reply.tool_calls.first().cloned().unwrap_or_default();
    let result = ChatMessage {
        role: "tool".into(),
        tool_call_id: Some(call.id),
        content: Some("sunny".into()),
        ..Default::default()
    };
    let request_with_result = CreateChatCompletionRequest {
        tools: vec![weather],
        ..request(model, vec![hello(), reply, result])
    };
    client.complete(request_with_result, Some(timeout)).await?;
    let function = call.function.unwrap_or_default();
    show(
        "tools",
        format!("{}({})", function.name, function.arguments),
    )
}

/// Sends a picture as a data URL, which can exceed gRPC's default limit of 4 MiB.
async fn image(
    client: &ChatClient,
    model: &str,
    timeout: Duration,
    size: usize,
) -> Result<(), Status> {
    let picture = ImageUrl {
        url: format!(
            "data:image/png;base64,{}",
            BASE64_STANDARD.encode(vec![0; size])
        ),
        ..Default::default()
    };
    let parts = [Part::Text("What is this?".into()), Part::ImageUrl(picture)];
    let user_message = ChatMessage {
        role: "user".into(),
        content_parts: parts
            .map(|part| ContentPart {
                part: Some(part),
                ..Default::default()
            })
            .into(),
        ..Default::default()
    };
    let response = client
        .complete(request(model, vec![user_message]), Some(timeout))
        .await?
        .into_inner();
    show("image", message(response)?.content())
}

fn request(model: &str, messages: Vec<ChatMessage>) -> CreateChatCompletionRequest {
    CreateChatCompletionRequest {
        model: model.into(),
        messages,
        ..Default::default()
    }
}

fn hello() -> ChatMessage {
    ChatMessage {
        role: "user".into(),
        content: Some("Hello!".into()),
        ..Default::default()
    }
}

fn message(response: CreateChatCompletionResponse) -> Result<ChatMessage, Status> {
    let choice = response.choices.into_iter().next();
    choice
        .and_then(|choice| choice.message)
        .ok_or_else(|| Status::internal("response: no message; use another model"))
}

fn show(name: &str, result: impl Display) -> Result<(), Status> {
    Ok(writeln!(io::stdout(), "{name:<10}{result}")?)
}
