"""Examples of each use of chatrpc from Python. Run it against `make serve`:

python tour.py [--target HOST:PORT] [--tls | --ca-file FILE] [--cert FILE --key FILE] [--model NAME]
"""

import argparse
import base64
import os
import sys
from typing import Any

os.environ["GRPC_VERBOSITY"] = "NONE"  # before the import, because gRPC's core writes to standard error by itself

from chatrpc_client import ChatError, Client

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello!"}]


def main() -> int:
    """Run all examples and return the exit code: 1 with one line on standard error if a call fails unexpectedly."""
    parser = argparse.ArgumentParser(description="Run an example of each use of chatrpc.")
    parser.add_argument("--target", metavar="HOST:PORT", help="default: CHATRPC_TARGET, else 127.0.0.1:50051")
    parser.add_argument("--tls", action="store_true", help="use TLS and trust the system's authorities")
    parser.add_argument("--ca-file", metavar="FILE", help="use TLS and trust the authorities in this PEM file")
    parser.add_argument("--cert", metavar="FILE", help="client certificate in this PEM file; use TLS")
    parser.add_argument("--key", metavar="FILE", help="its key")
    parser.add_argument("--model", default="echo")
    parser.add_argument("--image-bytes", type=int, default=5 << 20, metavar="N")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="default: 60")
    args = parser.parse_args()
    if (args.cert is None) != (args.key is None):
        parser.error("--cert, --key: one is missing; give both")
    cert = None if args.cert is None else (args.cert, args.key)
    try:
        with channel(args.target, credentials(args), cert, args.timeout) as client:
            unary(client, args.model)
            stream(client, args.model)
            deadline(client)
            cancel(client)
            error(client)
            tools(client, args.model)
            image(client, args.model, args.image_bytes)
    except ChatError as failed:
        print(f"chatrpc: {' '.join(str(failed).split())}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as failed:
        print(f"chatrpc: {failed}", file=sys.stderr)
        return 1
    return 0


def channel(target: str | None, tls: bool | str, cert: tuple[str, str] | None, timeout: float) -> Client:
    """Open a channel. Keepalive, round robin, retries and 20 MiB are the defaults of chatrpc_client/channel.py.

    `timeout`, in seconds, is the default deadline of each call.
    """
    return Client(target, tls=tls, cert=cert, timeout=timeout)


def credentials(args: argparse.Namespace) -> bool | str:
    """Choose no TLS, the system's authorities or a CA file. The client reads the key from CHATRPC_API_KEY."""
    return args.tls if args.ca_file is None else args.ca_file


def unary(client: Client, model: str) -> None:
    """Send a request and receive the complete response."""
    response = client.complete(model=model, messages=HELLO, temperature=0.2)
    show("unary", response.choices[0].message.content)


def stream(client: Client, model: str) -> None:
    """Receive the response piece by piece. The stream ends without an exception only if it is complete."""
    with client.stream(model=model, messages=HELLO) as response:
        print(f"{'stream':<10}", end="")
        for text in response.text_stream():
            print(text, end="", flush=True)
    usage = response.snapshot.usage
    print(f" ({usage.prompt_tokens} tokens in, {usage.completion_tokens} out)" if usage else " (usage not reported)")


def deadline(client: Client) -> None:
    """Set a deadline. It applies up to the model: after it, the call stops everywhere."""
    try:
        client.complete(model="echo:delay=30", messages=HELLO, timeout=0.3)
    except ChatError as failed:
        show("deadline", failed.code.name)


def cancel(client: Client) -> None:
    """Leave a stream early: this cancels the call, and the model stops."""
    messages = 0
    with client.stream(model="echo:pieces=999,pace=0.02", messages=HELLO) as response:
        for _ in response:
            messages += 1
            if messages == 3:
                break
    show("cancel", f"stopped after {messages} messages")


def error(client: Client) -> None:
    """Read an error: its code, its reason, the time to wait before a retry and the upstream's HTTP status."""
    try:
        client.complete(model="echo:status=429,retry_after=7", messages=HELLO, timeout=5)
    except ChatError as failed:
        retry = "" if failed.retry_after is None else f", retry in {failed.retry_after:g} s"
        show("error", f"{failed.code.name} {failed.reason}{retry}, upstream's HTTP status {failed.upstream_status}")


def tools(client: Client, model: str) -> None:
    """Let the model call a function, then send the function's result with the rest of the chat."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    response = client.complete(model=model, messages=HELLO, tools=[weather], tool_choice="required")
    message = response.choices[0].message
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    client.complete(model=model, messages=[*HELLO, message, result], tools=[weather])
    show("tools", f"{call.function.name}({call.function.arguments})")


def image(client: Client, model: str, size: int) -> None:
    """Send a picture as a data URL, which can exceed gRPC's default limit of 4 MiB."""
    url = f"data:image/png;base64,{base64.b64encode(bytes(size)).decode()}"
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    response = client.complete(model=model, messages=[{"role": "user", "content": parts}])
    show("image", response.choices[0].message.content)


def show(name: str, result: str) -> None:
    """Print one line of the tour."""
    print(f"{name:<10}{result}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
