"""Drives `target.check` with atheris; `run` starts it. The arguments are libFuzzer's."""

import sys

import atheris

with atheris.instrument_imports(include=["chatrpc_server.core"]):
    import target

if __name__ == "__main__":
    atheris.Setup(sys.argv, target.check)
    atheris.Fuzz()
