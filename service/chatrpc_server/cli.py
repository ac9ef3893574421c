"""The command line: serve, demo, echo, check-config, healthcheck.

Exit codes: 0 done, 1 it failed (the service cannot start, is not healthy, the demo's calls failed), 2 the settings or
flags are wrong, or an extra is not installed. What goes wrong is told in one line each, never as a traceback.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatrpc_server import __version__
from chatrpc_server.process.lifecycle import StartError, stop_signals
from chatrpc_server.settings import Address, Settings, SettingsError, SettingsFile, add_flags, load, settings_file

if TYPE_CHECKING:
    from chatrpc_server.process.workers import Parent

log = logging.getLogger("chatrpc.server")

_Namespace = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = _parser()
    args, unknown = parser.parse_known_args(arguments)
    try:
        return int(args.run(args, unknown))
    except SettingsError as error:
        for mistake in error.mistakes:
            print(f"chatrpc-server: {mistake}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        problem = "the embedded upstream: aiohttp is not installed; run pip install 'chatrpc-server[echo]'"
        print(f"chatrpc-server: {problem}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatrpc-server",
        description="A typed, streaming gRPC chat API in front of any OpenAI-compatible endpoint.",
        epilog="Every setting can come from flags, CHATRPC_* variables or a YAML file, in this order of strength.",
    )
    parser.add_argument("--version", action="version", version=f"chatrpc-server {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the service", description="Runs the service until SIGTERM.")
    serve.set_defaults(run=_serve)
    add_flags(serve)

    demo = commands.add_parser(
        "demo",
        help="start everything, make two calls, show what came of it",
        description="Starts the service, and the embedded upstream unless a key or a base URL is set; makes a unary"
        " and a streaming call over gRPC and shows the answers and the metrics.",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument("--keep", action="store_true", help="go on serving until SIGINT or SIGTERM")
    demo.add_argument("--model", help="model to ask; default: echo, or gpt-4o-mini for a real upstream")
    demo.add_argument("--prompt", default="Why do streams beat waiting?", help="what to ask; default: %(default)s")
    add_flags(demo)

    echo = commands.add_parser(
        "echo",
        help="run the embedded upstream by itself",
        description="Runs an OpenAI-compatible HTTP server that needs no key. Model names choose its behaviour.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_directives(),
    )
    echo.set_defaults(run=_echo)
    echo.add_argument("--listen", default="127.0.0.1:8080", metavar="host:port", help="default: %(default)s")
    echo.add_argument("--pace-seconds", type=float, default=0.0, help="pause before each chunk; default: %(default)s")
    echo.add_argument("--api-key", help="refuse other keys with 401")

    check = commands.add_parser("check-config", help="check the settings and print them, secrets hidden")
    check.set_defaults(run=_check_config)
    add_flags(check)

    health = commands.add_parser(
        "healthcheck",
        help="ask a running service for its health; exit code 0 if it serves",
        description="Asks grpc.health.v1. Exit code 0: SERVING; 1: anything else, or no answer.",
    )
    health.set_defaults(run=_healthcheck)
    health.add_argument("--service", default="", help="health service name: readiness, liveness, …; default: all")
    health.add_argument("--timeout-seconds", type=float, default=3.0, help="default: %(default)s")
    add_flags(health)
    return parser


def _directives() -> str:
    from chatrpc_echo import DIRECTIVES

    lines = [f"  {name}{description}" for name, description in DIRECTIVES.items()]
    return "\n".join(["directives in model names, such as echo:pace=0.05,truncate=3:", *lines])


def _serve(args: _Namespace, unknown: Sequence[str]) -> int:
    settings = load(args, unknown=unknown)
    _configure_logs(settings, settings.log.level)
    file = settings_file(args, unknown=unknown)
    return _serve_alone(settings, file) if settings.workers == 1 else _serve_with_workers(settings, file)


def _serve_alone(settings: Settings, file: SettingsFile | None) -> int:
    from chatrpc_server.server import Server

    async def run() -> None:
        with stop_signals() as stop_requested:
            await Server(settings, file).run(stop_requested)

    return _run(run, settings.event_loop)


def _serve_with_workers(settings: Settings, file: SettingsFile | None) -> int:
    from chatrpc_server.process.ports import reserved
    from chatrpc_server.process.workers import Workers
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
            work = partial(_work, settings.model_copy(update=addresses), file, metrics.folder)
            drain_seconds = settings.drain.delay_seconds + settings.drain.grace_seconds
            await Workers(settings.workers, work, drain_seconds, metrics).run()

    return _run(run, "asyncio")


def _work(settings: Settings, file: SettingsFile | None, metrics_folder: Path, number: int, parent: "Parent") -> int:
    """What one of several workers does."""
    from chatrpc_server.server import Server
    from chatrpc_server.telemetry import multiprocess

    _configure_logs(settings, settings.log.level, number)
    multiprocess.use_worker_files(metrics_folder, number)

    async def run() -> None:
        with parent.stop_requests() as stop_requested:
            await Server(settings, file, is_worker=True).run(stop_requested, parent.report_started)

    code = _run(run, settings.event_loop, parent.report_failure)
    if parent.has_exited:
        multiprocess.remove_worker_files(metrics_folder, number)
    return code


def _demo(args: _Namespace, unknown: Sequence[str]) -> int:
    from chatrpc_server.demo import demo

    settings = load(args, unknown=unknown)
    _configure_logs(settings, "warning")  # the answers are to be seen, not the log
    return _run(lambda: demo(settings, model=args.model, prompt=args.prompt, keep=args.keep), settings.event_loop)


def _echo(args: _Namespace, unknown: Sequence[str]) -> int:
    _refuse(unknown)
    try:
        address = Address.parse(args.listen)
    except ValueError as error:
        raise SettingsError([f"--listen: {error}"]) from None
    from chatrpc_echo import Echo

    echo = Echo(address.host, address.port, pace_seconds=args.pace_seconds, api_key=args.api_key)

    async def serve() -> None:
        try:
            await echo.start()
        except OSError as error:
            raise StartError(f"--listen: cannot listen on {address}: {error.strerror or error}") from None
        print(f"echo answers at {echo.base_url}", flush=True)
        with stop_signals() as stop_requested:
            await stop_requested()
        await echo.stop()

    return _run(serve)


def _check_config(args: _Namespace, unknown: Sequence[str]) -> int:
    settings = load(args, unknown=unknown)
    print(json.dumps(settings.redacted(), indent=2, ensure_ascii=False))
    return 0


def _healthcheck(args: _Namespace, unknown: Sequence[str]) -> int:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    settings = load(args, unknown=unknown)
    if settings.tls.cert_file and not settings.health_listen:
        raise SettingsError(["health_listen: must be given where TLS is on: health is asked there, without TLS"])
    listen = settings.health_listen or settings.listen
    # A server that listens everywhere is asked on loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104
    target = str(Address(host, listen.port))
    try:
        # Whatever proxy the environment names, this machine is not behind it.
        with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
            request = health_pb2.HealthCheckRequest(service=args.service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=args.timeout_seconds)
    except grpc.RpcError as error:
        print(f"chatrpc-server: {target}: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(status)
    return 0 if status == "SERVING" else 1


def _configure_logs(settings: Settings, level: str, worker: int | None = None) -> None:
    from chatrpc_server.core.text import Redactor
    from chatrpc_server.telemetry import logs

    logs.configure(level, settings.log.format, Redactor(settings.secrets()), worker)


def _refuse(unknown: Sequence[str]) -> None:
    if unknown:
        raise SettingsError([f"{unknown[0].partition('=')[0]}: unknown argument"])


def _print(error: StartError) -> None:
    print(f"chatrpc-server: {error}", file=sys.stderr)


def _run(
    run: Callable[[], Coroutine[Any, Any, Any]],
    event_loop: str = "uvloop",
    failed: Callable[[StartError], None] = _print,
) -> int:
    """Runs it to its end; False from it, or `StartError`, is exit code 1."""
    factory = None
    if event_loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return 1 if runner.run(run()) is False else 0
    except StartError as error:
        failed(error)
        return 1
