"""The command line: serve, demo, echo, check-config, healthcheck.

Exit codes: 0 success; 1 failure (the service cannot start, is not healthy, or a call of the demo failed); 2 invalid
settings or flags, or a missing extra. Each problem is reported in one line, never as a traceback.
"""

import argparse
import asyncio
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from chatrpc_server import __version__
from chatrpc_server.process.lifecycle import StartError, stop_signals
from chatrpc_server.settings import Address, Settings, SettingsError, SettingsFile, add_flags, load, settings_file

if TYPE_CHECKING:
    from chatrpc_server.process.workers import Parent

log = logging.getLogger("chatrpc.server")

_Namespace = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code. If stdout is a pipe that was closed, return 141, as if by SIGPIPE."""
    args = argparse.Namespace(run=None)
    try:
        try:
            args, unknown = _parser().parse_known_args(arguments)
            return _run_command(args, unknown)
        finally:
            sys.stdout.flush()  # here, because an error at the interpreter's exit is a traceback
    except OSError as error:
        if args.run is _serve or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EDQUOT):
            raise  # not an error of stdout
        with open(os.devnull, "w") as discarded:
            os.dup2(discarded.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        _print_error(f"stdout: cannot write: {error.strerror}; use another file or disk")
        return 1


def _run_command(args: _Namespace, unknown: Sequence[str]) -> int:
    try:
        return int(args.run(args, unknown))
    except SettingsError as error:
        for mistake in error.mistakes:
            _print_error(mistake)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        _print_error("the embedded upstream: aiohttp is not installed; run pip install 'chatrpc-server[echo]'")
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with the error, without the keys that it quotes."""
        from chatrpc_server.core.text import Redactor

        super().error(Redactor()(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="chatrpc-server",
        description="A typed, streaming gRPC chat API in front of any OpenAI-compatible endpoint.",
        epilog="Settings come from flags, CHATRPC_* variables and a YAML file. Flags override variables, and variables"
        " override the file.",
    )
    parser.add_argument("--version", action="version", version=f"chatrpc-server {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="run the service", description="Run the service until SIGTERM or SIGINT, then drain."
    )
    serve.set_defaults(run=_serve)
    add_flags(serve)

    demo = commands.add_parser(
        "demo",
        help="start the service, make two calls, show responses and metrics",
        description="Start the service, make a unary and a streaming call over gRPC, and show responses and metrics. If"
        " neither an API key nor a base URL is set, the embedded upstream runs too.",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument("--keep", action="store_true", help="keep serving until SIGINT or SIGTERM")
    demo.add_argument("--echo", action="store_true", help="use the embedded upstream, even if another one is set")
    demo.add_argument(
        "--model", metavar="TEXT", help="model of both calls; default: echo, or gpt-4o-mini for a real upstream"
    )
    demo.add_argument(
        "--prompt",
        default="Why do streams beat waiting?",
        metavar="TEXT",
        help="user message of both calls; default: %(default)s",
    )
    add_flags(demo)

    echo = commands.add_parser(
        "echo",
        help="run the embedded upstream alone",
        description="Run an OpenAI-compatible HTTP server that requires no key. Model names select its behaviour.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_directives(),
    )
    echo.set_defaults(run=_echo)
    echo.add_argument("--listen", default="127.0.0.1:8080", metavar="host:port", help="address; default: %(default)s")
    echo.add_argument(
        "--pace-seconds", type=float, default=0.0, metavar="X", help="pause before each chunk; default: %(default)s"
    )
    echo.add_argument("--api-key", metavar="TEXT", help="reject other keys with status 401; default: accept any")

    check = commands.add_parser(
        "check-config",
        help="check the settings and print them without secrets",
        description="Check the settings of all sources, and print them as JSON without secrets.",
    )
    check.set_defaults(run=_check_config)
    add_flags(check)

    health = commands.add_parser(
        "healthcheck",
        help="check the health of a running service; exit code 0 if it serves",
        description="Call grpc.health.v1. Exit code 0: SERVING; 1: any other status, or no response.",
    )
    health.set_defaults(run=_healthcheck)
    health.add_argument(
        "--service",
        default="",
        metavar="TEXT",
        help="health service, such as readiness or liveness; default: the server",
    )
    health.add_argument(
        "--timeout-seconds", type=float, default=3.0, metavar="X", help="longest wait; default: %(default)s"
    )
    add_flags(health)
    return parser


def _directives() -> str:
    from chatrpc_echo import DIRECTIVES

    lines = [f"  {name}{description}" for name, description in DIRECTIVES.items()]
    return "\n".join(["directives in model names, for example echo:pace=0.05,truncate=3:", *lines])


def _serve(args: _Namespace, unknown: Sequence[str]) -> int:
    file = settings_file(args, unknown=unknown)
    settings = load(args, unknown=unknown)
    return _serve_alone(settings, file) if settings.workers == 1 else _serve_with_workers(settings, file)


def _serve_alone(settings: Settings, file: SettingsFile | None) -> int:
    from chatrpc_server.server import Server

    async def run() -> bool:
        with stop_signals() as stop_requested:
            return await Server(settings, file).run(stop_requested)

    return _run(run, settings.event_loop, logs=_logs(settings, capture=settings.log.capture_stderr))


def _serve_with_workers(settings: Settings, file: SettingsFile | None) -> int:
    from chatrpc_server.process.ports import reserved
    from chatrpc_server.process.workers import Timeouts, Workers
    from chatrpc_server.telemetry.exporter import listen
    from chatrpc_server.telemetry.multiprocess import SharedMetrics

    async def run() -> None:
        with ExitStack() as stack:
            addresses = {
                setting: stack.enter_context(reserved(setting, address))
                for setting in ("listen", "health_listen")
                if (address := getattr(settings, setting))
            }
            metrics = stack.enter_context(SharedMetrics(settings.workers))
            exporter = listen(metrics.registry, settings.metrics_listen)
            stack.callback(exporter.close)
            log.info(
                "serving metrics of all workers",
                extra={"event": "metrics_serving", "metrics": f"http://{exporter.address}/metrics"},
            )
            work = partial(_run_worker, settings.model_copy(update=addresses), file, metrics.folder)
            drain_seconds = settings.drain.delay_seconds + settings.drain.grace_seconds
            timeouts = Timeouts(drain_seconds, settings.worker_heartbeat_timeout_seconds)
            await Workers(settings.workers, work, timeouts, metrics).run()

    return _run(run, "asyncio", logs=_logs(settings))


def _run_worker(
    settings: Settings, file: SettingsFile | None, metrics_folder: Path, number: int, parent: "Parent"
) -> int:
    """Serve as worker `number`; return the exit code."""
    from chatrpc_server.server import Server
    from chatrpc_server.telemetry import multiprocess

    multiprocess.use_worker_files(metrics_folder, number, parent.notify)

    async def run() -> bool:
        with parent.stop_requests() as stop_requested:
            return await Server(settings, file, is_worker=True).run(stop_requested, parent.report_started)

    code = _run(
        run,
        settings.event_loop,
        parent.report_failure,
        _logs(settings, worker=number, capture=settings.log.capture_stderr),
    )
    if parent.has_exited:
        multiprocess.remove_worker_files(metrics_folder, number)
    return code


def _demo(args: _Namespace, unknown: Sequence[str]) -> int:
    from chatrpc_server.demo import demo

    settings = load(args, unknown=unknown)
    logs = _logs(settings, "warning")  # so that log lines do not hide the responses
    run = partial(demo, settings, model=args.model, prompt=args.prompt, keep=args.keep, echo=args.echo)
    return _run(run, settings.event_loop, logs=logs)


def _echo(args: _Namespace, unknown: Sequence[str]) -> int:
    _reject_unknown(unknown)
    try:
        address = Address.parse(args.listen)
    except ValueError as error:
        raise SettingsError([f"--listen: {error}"]) from None
    from chatrpc_echo import Echo
    from chatrpc_server.process.ports import cannot_listen

    echo = Echo(address.host, address.port, pace_seconds=args.pace_seconds, api_key=args.api_key)

    async def serve() -> None:
        try:
            await echo.start()
        except OSError as error:
            raise cannot_listen("--listen", address, error) from None
        with stop_signals() as stop_requested:
            print(f"echo serves at {echo.base_url}", flush=True)
            await stop_requested()
        await echo.stop()

    return _run(serve)


def _check_config(args: _Namespace, unknown: Sequence[str]) -> int:
    from chatrpc_server.core.text import Redactor
    from chatrpc_server.server import Server

    settings = load(args, unknown=unknown)
    _run(lambda: Server(settings).check(), "asyncio")
    text = json.dumps(_redacted(settings.redacted(), Redactor(settings.secrets())), indent=2, ensure_ascii=False)
    print(text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding))
    return 0


def _redacted(value: Any, redact: Callable[[str], str]) -> Any:
    """Return a JSON value with secrets hidden in all its texts and names."""
    if isinstance(value, dict):
        return {redact(name): _redacted(each, redact) for name, each in value.items()}
    if isinstance(value, list):
        return [_redacted(each, redact) for each in value]
    return redact(value) if isinstance(value, str) else value


def _healthcheck(args: _Namespace, unknown: Sequence[str]) -> int:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    settings = load(args, unknown=unknown)
    if settings.tls.cert_file and not settings.health_listen:
        raise SettingsError(["health_listen: is required for health checks if TLS is on; set an address without TLS"])
    listen = settings.health_listen or settings.listen
    # A server that listens on all addresses is checked on loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104
    target = str(Address(host, listen.port))
    try:
        # No proxy, because the target is this machine.
        with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
            request = health_pb2.HealthCheckRequest(service=args.service)
            response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=args.timeout_seconds)
    except grpc.RpcError as error:
        _print_error(f"{target}: {error.code().name}: {error.details()}")
        return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    print(status)
    return 0 if status == "SERVING" else 1


def _logs(
    settings: Settings, level: str = "", *, worker: int | None = None, capture: bool = False
) -> AbstractContextManager[None]:
    from chatrpc_server.core.text import Redactor
    from chatrpc_server.telemetry import logs

    return logs.writing(
        level or settings.log.level,
        settings.log.format,
        Redactor(settings.secrets()),
        buffer_bytes=settings.log.buffer_bytes,
        worker=worker,
        capture=capture,
    )


def _reject_unknown(unknown: Sequence[str]) -> None:
    if unknown:
        raise SettingsError([f"{unknown[0].partition('=')[0]}: unknown argument; see chatrpc-server echo --help"])


def _print_error(error: StartError | str) -> None:
    from chatrpc_server.core.text import Redactor

    with suppress(OSError):  # stderr is a closed pipe, or its disk is full
        print(f"chatrpc-server: {Redactor()(str(error))}", file=sys.stderr)


def _run(
    run: Callable[[], Coroutine[Any, Any, Any]],
    event_loop: str = "uvloop",
    report_failure: Callable[[StartError], None] = _print_error,
    logs: AbstractContextManager[None] | None = None,
) -> int:
    """Run the coroutine inside `logs`; return exit code 1 if it returns False or raises `StartError`, else 0."""
    factory = None
    if event_loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    try:
        with logs or nullcontext(), asyncio.Runner(loop_factory=factory) as runner:
            return 1 if runner.run(run()) is False else 0
    except StartError as error:
        report_failure(error)
        return 1
