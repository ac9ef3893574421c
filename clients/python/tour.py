"""What one does with chatrpc, from Python, one thing after the other. Against `make serve`:

python tour.py [--target HOST:PORT] [--tls | --ca-file FILE] [--model NAME]
"""

import argparse
import base64
import os
import sys
from typing import Any

os.environ["GRPC_VERBOSITY"] = "NONE"  # else its core, when it is imported, takes to writing to standard error itself

from chatrpc_client import ChatError, Client

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello!"}]


def main() -> int:
    """Shows everything; 1 with one line on standard error where something fails that should not."""
    parser = argparse.ArgumentParser(description="Shows what one does with chatrpc.")
    parser.add_argument("--target", metavar="HOST:PORT", help="else CHATRPC_TARGET, else 127.0.0.1:50051")
    parser.add_argument("--tls", action="store_true", help="trust the system's authorities")
    parser.add_argument("--ca-file", metavar="FILE", help="TLS, and trust these authorities")
    parser.add_argument("--model", default="echo")
    parser.add_argument("--image-bytes", type=int, default=5 << 20, metavar="N")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="of each call (60)")
    args = parser.parse_args()
    try:
        with channel(args.target, credentials(args), args.timeout) as client:
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
    except (OSError, ValueError) as wrong:
        print(f"chatrpc: {wrong}", file=sys.stderr)
        return 1
    return 0


def channel(target: str | None, tls: bool | str, timeout: float) -> Client:
    """Keepalive, round robin, retries and 20 MiB are the client's defaults: see chatrpc_client/channel.py.

    `timeout`, in seconds, is the deadline of every call that has no other.
    """
    return Client(target, tls=tls, timeout=timeout)


def credentials(args: argparse.Namespace) -> bool | str:
    """TLS: not at all, by the system's authorities, or by a file's. The key comes from CHATRPC_API_KEY by itself."""
    return args.tls if args.ca_file is None else args.ca_file


def unary(client: Client, model: str) -> None:
    """One question, one answer."""
    answer = client.complete(model=model, messages=HELLO, temperature=0.2)
    show("unary", answer.choices[0].message.content)


def stream(client: Client, model: str) -> None:
    """The same, piece by piece. It ends without an exception only if the answer is whole."""
    with client.stream(model=model, messages=HELLO) as answer:
        print(f"{'stream':<10}", end="")
        for text in answer.text_stream():
            print(text, end="", flush=True)
    usage = answer.snapshot.usage
    print(f" ({usage.prompt_tokens} tokens in, {usage.completion_tokens} out)" if usage else " (no usage told)")


def deadline(client: Client) -> None:
    """It binds up to the model: what is not there in time is given up, everywhere."""
    try:
        client.complete(model="echo:delay=30", messages=HELLO, timeout=0.3)
    except ChatError as late:
        show("deadline", late.code.name)


def cancel(client: Client) -> None:
    """Leaving the stream cancels the call, and the model stops."""
    messages = 0
    with client.stream(model="echo:pieces=999,pace=0.02", messages=HELLO) as answer:
        for _ in answer:
            messages += 1
            if messages == 3:
                break
    show("cancel", f"stopped after {messages} messages")


def error(client: Client) -> None:
    """The status says what kind of failure it is, its details which one, and what can be done."""
    try:
        client.complete(model="echo:status=429,retry_after=7", messages=HELLO, timeout=5)
    except ChatError as failed:
        again = "" if failed.retry_after is None else f", again in {failed.retry_after:g} s"
        show("error", f"{failed.code.name} {failed.reason}{again}, upstream's HTTP status {failed.upstream_status}")


def tools(client: Client, model: str) -> None:
    """The model asks for a function to be called; what it returned goes back with the rest of the chat."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    weather = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    answer = client.complete(model=model, messages=HELLO, tools=[weather], tool_choice="required")
    asked = answer.choices[0].message
    call = asked.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    client.complete(model=model, messages=[*HELLO, asked, result], tools=[weather])
    show("tools", f"{call.function.name}({call.function.arguments})")


def image(client: Client, model: str, size: int) -> None:
    """A picture goes as a data URL. gRPC's usual limit, 4 MiB, would be too little for it."""
    url = f"data:image/png;base64,{base64.b64encode(bytes(size)).decode()}"
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    answer = client.complete(model=model, messages=[{"role": "user", "content": parts}])
    show("image", answer.choices[0].message.content)


def show(name: str, what: str) -> None:
    """A line of the tour."""
    print(f"{name:<10}{what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
