"""Where settings come from: what each is called in every source, and pydantic-settings' sources of them.

The library builds and merges the values. Added here is what it lacks: where each value stands, all mistakes at once,
the nearest name for an unknown one. No message repeats a value: what was put in the wrong place may be a secret.
"""

import os
import re
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, EnvSettingsSource, SettingsConfigDict

from chatrpc_server.settings.address import Address
from chatrpc_server.settings.model import Settings, SettingsError

if TYPE_CHECKING:
    import yaml

_CUSTOMARY = {
    "OPENAI_API_KEY": "upstream.api_key",
    "OPENAI_API_KEY_FILE": "upstream.api_key_file",
    "OPENAI_BASE_URL": "upstream.base_url",
    "OPENAI_ORG_ID": "upstream.organization",
    "OPENAI_PROJECT_ID": "upstream.project",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "tracing.endpoint",
}
# But for the file's own variable, and what Kubernetes puts into every pod beside a Service called chatrpc….
_OURS = r"CHATRPC_(?!CONFIG=|(\w+_)?(SERVICE_(HOST|PORT\w*)=|PORT=\w+://|PORT_\d+_\w+=))"
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_KINDS |= {SecretStr: "text, secret", Address: "host:port", tuple: "a list of text"}
_BOUNDS = {"gt": "more than", "ge": "at least", "le": "at most", "max_length": "at most"}
_NULL = "tag:yaml.org,2002:null"
_Entry = tuple[str, Any, str]  # the name of a setting in its source, its value, its place as messages tell it


class SettingsFile(NamedTuple):
    """The YAML file of the settings, and how to load all of them anew."""

    path: Path
    load: Callable[[], Settings]


class SettingRow(NamedTuple):
    """One setting: its name in each source, what it takes (to be read after "must be"), default, description."""

    path: str
    env: str
    flag: str
    type: str
    default: str
    description: str


def describe() -> list[SettingRow]:
    """Every setting, in the order of the model."""
    return list(rows().values())


@cache
def rows() -> dict[str, SettingRow]:
    """Every setting by its dotted path, in the order of the model."""
    found = {}

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            path = prefix + name
            if isinstance(field.default, BaseModel):
                walk(type(field.default), f"{path}.")
            else:
                env, flag = "CHATRPC_" + path.upper().replace(".", "__"), "--" + path.replace("_", "-")
                found[path] = SettingRow(path, env, flag, _type(field), _text(field.default), str(field.description))

    walk(Settings, "")
    return found


def _type(field: FieldInfo) -> str:
    origin, arguments = get_origin(field.annotation), get_args(field.annotation)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    kind = next(_KINDS[kind] for kind in (*arguments, origin, field.annotation) if kind in _KINDS)
    bounds = ((words, getattr(data, name, None)) for data in field.metadata for name, words in _BOUNDS.items())
    return ", ".join([kind, *(f"{words} {bound}" for words, bound in bounds if bound is not None)])


def _text(default: object) -> str:
    if default is None or default == ():
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def settings_file(
    args: Namespace | None = None, environ: Mapping[str, str] = os.environ, unknown: Sequence[str] = ()
) -> SettingsFile | None:
    """The file that `load` reads with the same arguments, if there is one."""
    path = _file(args or Namespace(), environ)
    return SettingsFile(Path(path), partial(load, args, dict(environ), unknown)) if path else None


def _file(args: Namespace, environ: Mapping[str, str]) -> str:
    """The path of the YAML file; empty for none."""
    return str(getattr(args, "config", None) or environ.get("CHATRPC_CONFIG", ""))


def add_flags(parser: ArgumentParser) -> None:
    """Adds `--config` and a flag for each setting; `load` finds there what was given.

    Abbreviations are switched off: `--upstream.m` would change its meaning with the next setting.
    """
    by_flag = {row.flag: row for row in rows().values()}
    readable = {"Address": "host:port", "SecretStr": "str", "tuple[str,...]": "a,b,c"}

    def add(target: Any, flag: str, **options: Any) -> None:
        if flag in by_flag:  # else it is a whole group as JSON
            options["help"] = f"{by_flag[flag].description} Default: {by_flag[flag].default}.".replace("%", "%%")
            if "metavar" in options:
                options["metavar"] = readable.get(options["metavar"], options["metavar"])
            target.add_argument(flag, **options)

    parser.allow_abbrev = False
    parser.add_argument("--config", metavar="Path", default=SUPPRESS, help="YAML file; else CHATRPC_CONFIG.")
    CliSettingsSource[Any](_Loaded, root_parser=parser, add_argument_method=add)


def _root(file: str) -> "yaml.MappingNode | str | None":
    """The YAML file, None if it says nothing; or the mistake if it is no use as a whole."""
    import yaml  # slow to import, and only those with a file need it

    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError) as error:
        return f"{file}: cannot be read: {_reason(error)}"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        said = filter(None, (getattr(error, "context", None), getattr(error, "problem", "a character it cannot hold")))
        # The parser quotes what it stumbled over, such as the name of an alias.
        return f"{file}, line {line + 1}: not YAML: " + re.sub(r"'[^'<\\][^']+'", "'…'", ", ".join(said))
    if root is None or root.tag == _NULL or isinstance(root, yaml.MappingNode):
        return root if isinstance(root, yaml.MappingNode) else None
    return f"{file}, line {root.start_mark.line + 1}: must be a mapping, such as log: {{level: info}}"


def _entries(mapping: "yaml.MappingNode", file: str, search: "_Search", prefix: str = "") -> Iterator[_Entry]:
    """Scalars as they are written, so that they mean what they mean in the other sources; null is not given."""
    import yaml

    def plain(node: yaml.Node) -> object:
        right = isinstance(node, yaml.ScalarNode) and node.tag.startswith("tag:yaml.org") and node.tag != _NULL
        return node.value if right else {}  # which is valid nowhere

    for key, node in mapping.value:
        path, line = prefix + (key.value if isinstance(key, yaml.ScalarNode) else "?"), key.start_mark.line + 1
        place = f"{path} in {file}, line {line}"
        if path in search.lines:
            search.mistakes.append(f"{place}: given twice, first in line {search.lines[path]}")
        elif path in _groups() and isinstance(node, yaml.MappingNode):
            yield from _entries(node, file, search, f"{path}.")
        elif path in _groups() and node.tag != _NULL:
            search.mistakes.append(f"{place}: must be a mapping of settings")
        elif path not in _groups() and (path not in rows() or node.tag != _NULL):
            items = isinstance(node, yaml.SequenceNode)
            yield path, [plain(item) for item in node.value] if items else plain(node), place
        search.lines.setdefault(path, line)


def _groups() -> set[str]:
    return {path.partition(".")[0] for path in rows() if "." in path}


def _reason(error: Exception) -> str:
    """Without the path and the bytes that exceptions quote."""
    return (isinstance(error, OSError) and error.strerror) or "not UTF-8 text"


class _Search:
    """Takes from the sources, strongest first. Remembers values and their places by path, and all mistakes."""

    def __init__(self, args: Namespace, environ: Mapping[str, str], unknown: Sequence[str]) -> None:
        self._args, self._environ, self._unknown = args, environ, unknown
        self.values, self.places, self.lines = dict[str, Any](), dict[str, str](), dict[str, int]()
        self.mistakes: list[str] = []

    def flags(self) -> dict[str, Any]:
        if self._unknown and not self._unknown[0].startswith("-"):
            self.mistakes.append("the command line: an argument that belongs to no flag")
        given = [(row.flag, getattr(self._args, path), row.flag) for path, row in rows().items() if path in self._args]
        # What stands after an unknown flag may be its value, and is not told.
        unknown = [argument.partition("=")[0] for argument in self._unknown if argument.startswith("-")]
        paths = {"--config": "", **{row.flag: path for path, row in rows().items()}}
        return self._take([*given, *((flag, None, flag) for flag in unknown)], paths)

    def variables(self) -> dict[str, Any]:
        ours = [name for name, value in self._environ.items() if re.match(_OURS, f"{name}={value}")]
        return self._variables(ours, {"CHATRPC_CONFIG": "", **{row.env: path for path, row in rows().items()}})

    def customary(self) -> dict[str, Any]:
        return self._variables(_CUSTOMARY, _CUSTOMARY)

    def _variables(self, names: Iterable[str], paths: Mapping[str, str]) -> dict[str, Any]:
        given = ((name, self._environ.get(name), f"{name} in the environment") for name in names)
        return self._take((entry for entry in given if entry[1]), paths)

    def file(self) -> dict[str, Any]:
        path = _file(self._args, self._environ)
        root = _root(path) if path else None
        if isinstance(root, str):  # settings depend on each other: without the file's, right ones would be called wrong
            raise SettingsError([*self.mistakes, root])
        entries = _entries(root, path, self) if root else ()
        return self._take(entries, {path: path for path in (*rows(), *_groups())})

    def secrets(self) -> dict[str, Any]:
        """What stands in the files that are to hold secrets. Other files must be readable, no more."""
        secrets = {}
        for path, row in rows().items():
            if row.type != "a path" or not isinstance(file := self.values.get(path), str):
                continue
            place, secret = self.places[path], path.removesuffix("_file")
            try:
                content = Path(file).read_bytes().strip()
                if not content:
                    self.mistakes.append(f"{place}: the file is empty")
                elif secret in rows():
                    secrets[secret], self.places[secret] = content.decode(), place
            except (OSError, ValueError) as error:
                self.mistakes.append(f"{place}: the file cannot be read: {_reason(error)}")
        return secrets

    def _take(self, entries: Iterable[_Entry], paths: Mapping[str, str]) -> dict[str, Any]:
        """The values that count, by path. `paths` has the path of every name that the source knows.

        A secret and the file that holds it are one setting: of both only what the strongest source gives counts.
        """
        values, places = dict[str, Any](), dict[str, str]()
        for name, value, place in entries:
            if name in paths:
                values[paths[name]], places[paths[name]] = value, place
            else:
                nearest = "".join(f", did you mean {near}?" for near in get_close_matches(name, paths, n=1))
                self.mistakes.append(f"{place}: unknown setting{nearest}")
        for secret, file in ((path, f"{path}_file") for path in rows() if f"{path}_file" in rows()):
            if secret in values and file in values:
                self.mistakes.append(f"{places[file]}: give this or {places[secret]}, not both")
            if secret in self.places or file in self.places:
                values = {path: value for path, value in values.items() if path not in (secret, file)}
        self.values = values | self.values
        self.places = {path: places[path] for path in values} | self.places
        return values


class _Values(EnvSettingsSource):
    """Values by path, from whatever source, laid before the library as if they were variables."""

    def __init__(self, model: type[BaseSettings], values: Mapping[str, Any]) -> None:
        super().__init__(model)
        self.env_vars = {rows()[path].env.lower(): value for path, value in values.items()}


class _Loaded(BaseSettings, Settings):
    """Settings with their sources. A class of its own, so that Settings built directly reads nothing."""

    model_config = SettingsConfigDict(
        env_prefix="CHATRPC_",
        env_nested_delimiter="__",
        enable_decoding=False,  # text stays text: a list is a,b,c and nothing is JSON
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_use_class_docs_for_groups=True,
        cli_parse_none_str="\0",  # no argument can hold it: `null` is text, as in a variable
    )

    @classmethod
    def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
        """Strongest first, as the search wants it, which is the one init value."""
        search: _Search = init_settings()["search"]
        return (
            CliSettingsSource[Any](cls)(parsed_args=search.flags()),
            _Values(cls, search.variables()),
            _Values(cls, search.file()),
            _Values(cls, search.customary()),
            _Values(cls, search.secrets()),
        )


def load(
    args: Namespace | None = None, environ: Mapping[str, str] = os.environ, unknown: Sequence[str] = ()
) -> Settings:
    """Settings from all sources: defaults < `OPENAI_*`, `OTEL_*` < YAML file < `CHATRPC_*` < flags.

    Secrets' files are read; relative paths begin in the working directory. `args` comes from a parser that went through
    `add_flags`; `unknown` is what `parse_known_args` left over: told here with the nearest flag and without its value.
    Raises SettingsError with the mistakes of all sources.
    """
    search = _Search(args or Namespace(), environ, unknown)
    init: dict[str, Any] = {"search": search}
    try:
        settings = Settings(**dict(_Loaded(**init)))
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            path = next(p for n in (2, 1) if (p := ".".join(map(str, detail["loc"][:n]))) in rows())
            place = search.places.get(path, f"{path}, at its default")
            right = detail["ctx"]["error"] if detail["type"] == "value_error" else f"must be {rows()[path].type}"
            search.mistakes.append(f"{place}: {right}")
    if search.mistakes:
        raise SettingsError(dict.fromkeys(search.mistakes))
    return settings
