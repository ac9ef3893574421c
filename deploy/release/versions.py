#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the version of the file VERSION into every other file that needs it, and copy LICENSE into every package.

python deploy/release/versions.py [--check]

With --check, write nothing; exit with 1 and list the files that differ. Needs the standard library only.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEMANTIC = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
"""The form that is valid for pip, npm, Cargo, Maven, Go and Helm alike."""

PLACES = {
    "service/chatrpc_server/__init__.py": ['^__version__ = "@"'],
    "pyproject.toml": ['"chatrpc-protos>=@"'],
    "protos/python/pyproject.toml": ['^version = "@"'],
    "clients/python/src/chatrpc_client/__init__.py": ['^__version__ = "@"'],
    "clients/python/pyproject.toml": ['"chatrpc-protos>=@"'],
    "clients/typescript/package.json": ['^  "version": "@"'],
    "clients/typescript/package-lock.json": [
        '\\A{\n  "name": "chatrpc-client",\n  "version": "@"',
        '^      "name": "chatrpc-client",\n      "version": "@"',
    ],
    "clients/rust/Cargo.toml": ['\\A\\[package\\]\nname = "chatrpc-client"\nversion = "@"'],
    "clients/java/pom.xml": ["<artifactId>chatrpc-client</artifactId>\n  <version>@</version>"],
    "deploy/Dockerfile": ["^ARG VERSION=@$"],
    "deploy/helm/chatrpc/Chart.yaml": ["^version: @$", "^appVersion: @( |$)"],
    "deploy/helm/chatrpc/README.md": ["chatrpc:@"],
    "deploy/kubernetes/base/chatrpc.yaml": ['kubernetes.io/version: "?@', "image: chatrpc:@"],
    "deploy/kubernetes/overlay/kustomization.yaml": ["newTag: @$"],
    "docs/operating.md": ["registry.example/chatrpc:@"],
}
"""File to the patterns of its version, written @. Each pattern must occur."""

PACKAGES = ("protos/python", "clients/python", "clients/typescript", "clients/rust", "clients/java", "clients/go")
"""Folders that need a LICENSE of their own, because their build tools pack no file from outside of them."""


def versioned(text: str, patterns: list[str], version: str) -> str:
    """Return the text with the version at each place. Raises LookupError if a pattern does not occur."""
    for pattern in patterns:
        before, _, after = pattern.partition("@")
        whole = re.compile(rf"({before})\d+\.\d+\.\d+(?={after})", re.MULTILINE)
        text, count = whole.subn(lambda found: found[1] + version, text)
        if not count:
            raise LookupError(pattern)
    return text


def wanted(version: str) -> dict[Path, str]:
    """Return the text that each file must have."""
    texts = {ROOT / package / "LICENSE": (ROOT / "LICENSE").read_text() for package in PACKAGES}
    for name, patterns in PLACES.items():
        try:
            texts[ROOT / name] = versioned((ROOT / name).read_text(), patterns, version)
        except LookupError as error:
            sys.exit(f"{name}: has no {error}; change its pattern in {Path(__file__).name}")
    return texts


def main() -> int:
    version = (ROOT / "VERSION").read_text().strip()
    if not SEMANTIC.fullmatch(version):
        sys.exit(f"VERSION: {version!r} is not MAJOR.MINOR.PATCH; remove every other part")
    stale = {path: text for path, text in wanted(version).items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"stale: {path.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            path.write_text(text)
    if stale and "--check" in sys.argv:
        print("Files differ from VERSION or LICENSE; run `make version`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
