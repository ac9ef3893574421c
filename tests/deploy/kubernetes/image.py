"""An image that contains only one static program, as an archive in the format of `docker save`."""

import hashlib
import io
import json
import tarfile
from pathlib import Path


def archive(program: Path, name: str, target: Path) -> Path:
    """Write the archive to `target` and return it. `name` has a registry and a tag: localhost/name:test."""
    layer = _tar({program.name: program.read_bytes()})
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"manifest.json": manifest, "config.json": configuration}
    target.write_bytes(_tar({"layer.tar": layer} | {file: json.dumps(it).encode() for file, it in files.items()}))
    return target


def _tar(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    return written.getvalue()
