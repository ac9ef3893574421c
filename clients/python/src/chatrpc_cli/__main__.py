"""The command `chatrpc`: a streaming chat in the terminal."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from itertools import chain
from typing import TextIO

from google.protobuf.json_format import MessageToJson

from chatrpc.v1.chat_message_pb2 import ChatMessage
from chatrpc_client import __version__, channel
from chatrpc_client.client import DEFAULT_TIMEOUT_SECONDS, Client, Stream
from chatrpc_client.errors import ChatError

_MODEL_VARIABLE = "CHATRPC_MODEL"
_HELP = "/system TEXT sets the system message, /reset clears the chat, /exit quits; Ctrl-C stops a response."
_CLEAR_LINE = "\x1b[2K"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 1 if a call failed, 130 after Ctrl-C; argparse exits with 2."""
    _open_standard_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # because the interpreter flushes again as it exits
        if not isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `| head` does
            print(f"chatrpc: standard output: {error.strerror}; the response is incomplete", file=sys.stderr)
        return 1


def _open_standard_streams() -> None:
    """Open those of stdin, stdout and stderr that are closed, because Python sets them to None."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    model = args.model or os.environ.get(_MODEL_VARIABLE)
    if not model:
        parser.error(f"model: missing; use --model or set {_MODEL_VARIABLE} (the embedded upstream has the model echo)")
    tls: bool | str = args.tls if args.ca_file is None else args.ca_file
    if (args.cert is None) != (args.key is None):
        parser.error("--cert, --key: one is missing; give both")
    try:
        client = Client(args.target, tls=tls, cert=args.cert and (args.cert, args.key), timeout=args.timeout)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with client:
        chat = _Chat(client, model, args.system, as_json=args.json)
        interactive = sys.stdin.isatty()
        prompt = " ".join(args.prompt).encode(errors="replace").decode()  # gRPC sends UTF-8 only
        if not prompt and not interactive:
            prompt = sys.stdin.read().strip()
        if prompt:
            return chat.send(prompt)
        if not interactive:
            parser.error("prompt: missing; pass one as arguments or on standard input")
        return _converse(chat)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatrpc",
        description="Chat with a model through chatrpc: once with a prompt, as a conversation without one.",
        epilog=f"The environment variable {channel.KEY_VARIABLE} is sent as `authorization: Bearer …`.",
    )
    parser.add_argument("prompt", nargs="*", help="the prompt (default: standard input, unless it is a terminal)")
    parser.add_argument("-m", "--model", help=f"the model's name (default: {_MODEL_VARIABLE})")
    parser.add_argument("-s", "--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "-t",
        "--target",
        metavar="HOST:PORT",
        help=f"the service's address (default: {channel.TARGET_VARIABLE}, else {channel.DEFAULT_TARGET})",
    )
    parser.add_argument("--tls", action="store_true", help="use TLS and trust the system's authorities")
    parser.add_argument("--ca-file", metavar="FILE", help="use TLS and trust the authorities in this PEM file")
    parser.add_argument("--cert", metavar="FILE", help="client certificate in this PEM file; use TLS")
    parser.add_argument("--key", metavar="FILE", help="its key")
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="deadline of each response (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print each message of the stream as a line of JSON")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


class _Chat:
    """A chat and its output."""

    def __init__(self, client: Client, model: str, system: str | None, *, as_json: bool) -> None:
        self._client = client
        self._model = model
        self._as_json = as_json
        self._messages: list[ChatMessage] = []
        self.set_system(system or "")

    def set_system(self, text: str) -> None:
        """Set the system message, or remove it if `text` is empty."""
        system = [ChatMessage(role="system", content=text)] if text else []
        self._messages = [*system, *(message for message in self._messages if message.role != "system")]

    def reset(self) -> None:
        """Clear the chat except the system message."""
        self._messages = [message for message in self._messages if message.role == "system"]

    def send(self, text: str) -> int:
        """Send `text`, show the response and return the exit code. The chat keeps complete responses only."""
        question = ChatMessage(role="user", content=text)
        try:
            with self._client.stream(model=self._model, messages=[*self._messages, question]) as stream:
                self._show(stream)
        except ChatError as error:
            _explain(error)
            return 1
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        self._messages += [question, stream.snapshot.message]
        return 0

    def _show(self, stream: Stream) -> None:
        if self._as_json:
            for chunk in stream:
                print(MessageToJson(chunk, preserving_proto_field_name=True, indent=None), flush=True)
            return
        with _waiting():
            first = next(stream, None)
        shown = last = ""
        try:
            for part in chain.from_iterable(chunk.choices for chunk in chain([first] if first else [], stream)):
                reasoning = part.delta.reasoning_content or part.delta.reasoning
                content = part.delta.content or part.delta.refusal
                for kind, text in (("reasoning", _dim(reasoning)), ("content", content)):
                    if text:
                        print("\n\n" if last not in ("", kind) else "", text, sep="", end="", flush=True)
                        last, shown = kind, text
        finally:
            if shown and not shown.endswith("\n"):
                print(flush=True)
        self._show_end(stream)

    def _show_end(self, stream: Stream) -> None:
        """Show tool calls, which this command cannot execute, and the token usage."""
        message = stream.snapshot.message
        for call in message.tool_calls:
            print(f"{call.function.name or call.custom.name}({call.function.arguments or call.custom.input})")
        if message.HasField("function_call"):
            print(f"{message.function_call.name}({message.function_call.arguments})")
        usage = stream.snapshot.usage
        tokens = f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out" if usage else "usage not reported"
        reasons = sorted({*stream.snapshot.finish_reasons.values()} - {"stop"})
        if sys.stderr.isatty():
            summary = ", ".join([tokens, *(f"finish reason {reason}" for reason in reasons)])
            print(_dim(summary, sys.stderr), file=sys.stderr)


def _converse(chat: _Chat) -> int:
    with suppress(ImportError):
        import readline  # noqa: F401  # adds line editing and history to input()
    print(_dim(_HELP))
    while True:
        try:
            line = input("\n› " if sys.stdout.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        command, _, text = line.partition(" ")
        if command in ("/exit", "/quit"):
            return 0
        if command == "/reset":
            chat.reset()
        elif command == "/system":
            chat.set_system(text.strip())
        elif line.startswith("/"):
            print(_dim(_HELP))
        elif line:
            chat.send(line)


@contextmanager
def _waiting() -> Iterator[None]:
    """Show a sign of waiting if standard error is a terminal."""
    visible = sys.stderr.isatty()
    if visible:
        print(_dim("…", sys.stderr), end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if visible:
            print(f"\r{_CLEAR_LINE}", end="", file=sys.stderr, flush=True)


def _explain(error: ChatError) -> None:
    """Print the error and its details in one line."""
    more = [f"retry in {error.retry_after:g} s"] if error.retry_after is not None else []
    more += [f"{field}: {problem}" for field, problem in error.fields if problem not in error.message]
    if error.upstream_status is not None:
        more.append(f"upstream's HTTP status {error.upstream_status}")
    if error.request_id:
        more.append(f"request id {error.request_id}")
    print(f"chatrpc: {'; '.join([' '.join(str(error).split()), *more])}", file=sys.stderr)


def _dim(text: str, stream: TextIO | None = None) -> str:
    return f"\x1b[2m{text}\x1b[0m" if text and (stream or sys.stdout).isatty() else text


if __name__ == "__main__":
    sys.exit(main())
