"""The command `chatrpc`: a chat in the terminal, as it streams."""

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
_HELP = "/system TEXT sets the system's message, /reset forgets the chat, /exit; Ctrl-C stops."
_CLEAR_LINE = "\x1b[2K"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 if a call failed, 130 after Ctrl-C; argparse exits with 2."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # none is if it was closed before
            stream.reconfigure(errors="replace")
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter tries once more as it ends
        if not isinstance(error, BrokenPipeError):  # nobody reads on, as with `| head`
            print(f"chatrpc: cannot write: {error.strerror}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    model = args.model or os.environ.get(_MODEL_VARIABLE)
    if not model:
        parser.error(f"which model? Give --model or set {_MODEL_VARIABLE} (the embedded upstream's is called echo)")
    tls: bool | str = args.tls if args.ca_file is None else args.ca_file
    try:
        client = Client(args.target, tls=tls, timeout=args.timeout)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with client:
        chat = _Chat(client, model, args.system, as_json=args.json)
        talks = sys.stdin is not None and sys.stdin.isatty()
        prompt = " ".join(args.prompt).encode(errors="replace").decode()  # what is no UTF-8 cannot be sent
        if not prompt and not talks:
            prompt = sys.stdin.read().strip() if sys.stdin else ""
        if prompt:
            return chat.say(prompt)
        if not talks:
            parser.error("nothing to say: give a prompt, as arguments or on standard input")
        return _converse(chat)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatrpc",
        description="Chats with a model behind chatrpc. With a prompt it answers once, else it is a conversation.",
        epilog=f"{channel.KEY_VARIABLE} in the environment goes along as `authorization: Bearer …`.",
    )
    parser.add_argument("prompt", nargs="*", help="what to say; else standard input, unless that is a terminal")
    parser.add_argument("-m", "--model", help=f"the model's name (else {_MODEL_VARIABLE})")
    parser.add_argument("-s", "--system", metavar="TEXT", help="the system's message")
    parser.add_argument(
        "-t",
        "--target",
        metavar="HOST:PORT",
        help=f"where chatrpc is (else {channel.TARGET_VARIABLE}, else {channel.DEFAULT_TARGET})",
    )
    parser.add_argument("--tls", action="store_true", help="TLS, trusting the system's authorities")
    parser.add_argument("--ca-file", metavar="FILE", help="TLS, trusting the authorities in this file")
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="how long an answer may take (%(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="every message of the stream as a line of JSON")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


class _Chat:
    """A chat, and how it is shown."""

    def __init__(self, client: Client, model: str, system: str | None, *, as_json: bool) -> None:
        self._client = client
        self._model = model
        self._as_json = as_json
        self._messages: list[ChatMessage] = []
        self.set_system(system or "")

    def set_system(self, text: str) -> None:
        """Says this before all else; nothing, if it is empty."""
        said = [ChatMessage(role="system", content=text)] if text else []
        self._messages = [*said, *(message for message in self._messages if message.role != "system")]

    def reset(self) -> None:
        """Forgets all but the system's message."""
        self._messages = [message for message in self._messages if message.role == "system"]

    def say(self, text: str) -> int:
        """Says something and shows the answer; the exit code. What failed or was stopped is not remembered."""
        asked = ChatMessage(role="user", content=text)
        try:
            with self._client.stream(model=self._model, messages=[*self._messages, asked]) as stream:
                self._show(stream)
        except ChatError as error:
            _explain(error)
            return 1
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        self._messages += [asked, stream.snapshot.message]
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
                thought = part.delta.reasoning_content or part.delta.reasoning
                said = part.delta.content or part.delta.refusal
                for kind, text in (("thought", _dim(thought)), ("text", said)):
                    if text:
                        print("\n\n" if last not in ("", kind) else "", text, sep="", end="", flush=True)
                        last, shown = kind, text
        finally:
            if shown and not shown.endswith("\n"):
                print(flush=True)
        self._show_end(stream)

    def _show_end(self, stream: Stream) -> None:
        """Calls of tools, which nobody here can make; and what it cost."""
        snapshot = stream.snapshot
        message = snapshot.message
        for call in message.tool_calls:
            print(f"{call.function.name or call.custom.name}({call.function.arguments or call.custom.input})")
        if message.HasField("function_call"):
            print(f"{message.function_call.name}({message.function_call.arguments})")
        usage = snapshot.usage
        tokens = f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out" if usage else "usage not told"
        ends = sorted({reason for reason in snapshot.finish_reasons.values() if reason != "stop"})
        if sys.stderr.isatty():
            print(_dim(", ".join([tokens, *(f"ended by {reason}" for reason in ends)]), sys.stderr), file=sys.stderr)


def _converse(chat: _Chat) -> int:
    with suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited and come back by the arrow keys
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
            chat.say(line)


@contextmanager
def _waiting() -> Iterator[None]:
    """Shows that something is waited for, where somebody looks."""
    shows = sys.stderr.isatty()
    if shows:
        print(_dim("…", sys.stderr), end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shows:
            print(f"\r{_CLEAR_LINE}", end="", file=sys.stderr, flush=True)


def _explain(error: ChatError) -> None:
    """One line, and what else is known in it."""
    more = [f"try again in {error.retry_after:g} s"] if error.retry_after is not None else []
    more += [f"{field}: {what}" for field, what in error.fields if what not in error.message]
    if error.upstream_status is not None:
        more.append(f"the upstream's HTTP status is {error.upstream_status}")
    if error.request_id:
        more.append(f"request id {error.request_id}")
    print(f"chatrpc: {'; '.join([' '.join(str(error).split()), *more])}", file=sys.stderr)


def _dim(text: str, where: TextIO | None = None) -> str:
    return f"\x1b[2m{text}\x1b[0m" if text and (where or sys.stdout).isatty() else text


if __name__ == "__main__":
    sys.exit(main())
