"""Finds the settings: flags, environment variables and the YAML file. The only reader of `os.environ`.

Every message names the place of its setting. All mistakes are reported at once, and an unknown name with the nearest
known one. No message quotes a value, because a value in the wrong place can be a secret.
"""

import os
import re
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from chatrpc_server.settings import catalogue, files
from chatrpc_server.settings.catalogue import EntryNames, Group, GroupMap, Place, Setting, SettingRow, dotted, node_at
from chatrpc_server.settings.fields import Proxy, names_in
from chatrpc_server.settings.files import Fingerprint
from chatrpc_server.settings.model import Settings, SettingsError
from chatrpc_server.settings.proxies import proxy_of
from chatrpc_server.settings.yaml_file import Entry, UnreadableFile, YamlFile

_OTHER_PROGRAMS: dict[str, Place] = {
    "OPENAI_API_KEY": ("upstream", "api_key"),
    "OPENAI_API_KEY_FILE": ("upstream", "api_key_file"),
    "OPENAI_BASE_URL": ("upstream", "base_url"),
    "OPENAI_ORG_ID": ("upstream", "organization"),
    "OPENAI_PROJECT_ID": ("upstream", "project"),
    "SSL_CERT_FILE": ("upstream", "extra_ca_file"),
    "SSL_CERT_DIR": ("upstream", "extra_ca_dir"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("tracing", "endpoint"),
}
_CLIENTS = ("CHATRPC_TARGET", "CHATRPC_API_KEY", "CHATRPC_MODEL")
# All variables of the service, except the file's own, the clients', and those that Kubernetes adds for a Service named
# chatrpc….
_OURS = rf"(?!({'|'.join(_CLIENTS)})=)CHATRPC_(?!CONFIG=|(\w+_)?(SERVICE_(HOST|PORT\w*)=|PORT=\w+://|PORT_\d+_\w+=))"
_METAVARS = {"host:port": "host:port", "a path": "PATH", "a list of text": "a,b,c"}
_METAVARS |= {"a whole number": "N", "a number": "X", "text": "TEXT", "text, secret": "TEXT"}

_REFERENCE = re.compile(r"\$[{(]|^\$[A-Za-z_]\w*$")
"""The beginning of `${NAME}`, `$(NAME)` or all of `$NAME`, which shells and some formats of files replace."""
_MAX_MISTAKES = 50
_LONGEST_NAME = 100
"""The length up to which an unknown name is compared, in characters, because the time grows with its square."""

_Model = TypeVar("_Model", bound=BaseModel)


class SettingsFile(NamedTuple):
    """The YAML file of the settings, and a function that loads all settings again.

    `known` is the file's fingerprint from before the first load, so that no change after it is missed.
    """

    path: Path
    load: Callable[[], Settings]
    known: Fingerprint


@cache
def _catalogue(model: type[BaseModel]) -> Group:
    return catalogue.group_of(model)


def describe(model: type[BaseModel] = Settings) -> list[SettingRow]:
    """Describe every setting, in the order of the model."""
    return catalogue.rows(_catalogue(model))


def add_flags(parser: ArgumentParser, model: type[BaseModel] = Settings) -> None:
    """Add `--config` and a flag for each setting, for `load` to read.

    Abbreviations are off, because `--upstream.m` would change its meaning with the next setting.
    """
    parser.allow_abbrev = False
    parser.add_argument("--config", metavar="PATH", default=SUPPRESS, help="YAML file; else CHATRPC_CONFIG.")
    root = _catalogue(model)
    groups: dict[Place, Any] = {(): parser}
    for place in catalogue.leaves(root):
        parent, node, row = place[:-1], node_at(root, place), catalogue.row_at(root, place)
        if parent not in groups:
            group = node_at(root, parent)
            assert isinstance(group, Group)
            groups[parent] = parser.add_argument_group(f"{'.'.join(parent)} options", group.model.__doc__)
        text = f"{row.description} Default: {row.default}.".replace("%", "%%")
        options: dict[str, Any] = {"dest": ".".join(place), "default": SUPPRESS, "help": text}
        if row.type == "true or false":
            options["action"] = BooleanOptionalAction
        elif isinstance(node, GroupMap) or row.type.startswith("a list"):
            options |= {"metavar": "a,b,c", "action": "append"}
        elif isinstance(node, Setting) and node.options:
            options["metavar"] = "{" + ",".join(node.options) + "}"
        else:
            options["metavar"] = next(words for kind, words in _METAVARS.items() if row.type.startswith(kind))
        groups[parent].add_argument(row.flag, **options)


def load(
    args: Namespace | None = None, environ: Mapping[str, str] = os.environ, unknown: Sequence[str] = ()
) -> Settings:
    """Load the settings from all sources: defaults < other programs' variables < YAML file < `CHATRPC_*` < flags.

    Files that hold secrets are read; relative paths start at the working directory. `args` comes from a parser with
    the flags of `add_flags`; `unknown` has the other arguments from its `parse_known_args`. Raises SettingsError with
    the mistakes of all sources.
    """
    return _with_proxy(load_model(Settings, args or Namespace(), environ, unknown, _OTHER_PROGRAMS), environ)


def upstream_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables of the OpenAI SDKs that are set and select an upstream. Shells often have them."""
    return [name for name in ("OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "OPENAI_BASE_URL") if environ.get(name)]


def _with_proxy(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Return the settings with the proxy that the environment names, if they request it and have none."""
    upstream = settings.upstream
    if not upstream.proxy_from_env or upstream.proxy or not (found := proxy_of(upstream.base_url, environ)):
        return settings
    variable, url = found
    try:
        proxy = TypeAdapter(Proxy).validate_python(url)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["ctx"]["error"]
        raise SettingsError([f"{variable} in the environment: {problem}"]) from None
    return settings.model_copy(update={"upstream": upstream.model_copy(update={"proxy": proxy})})


def settings_file(
    args: Namespace | None = None, environ: Mapping[str, str] = os.environ, unknown: Sequence[str] = ()
) -> SettingsFile | None:
    """Return the file that `load` reads with the same arguments, if there is one. Call this before `load`."""
    path = _file(args or Namespace(), environ)
    if not path:
        return None
    known = files.fingerprint(Path(path))
    return SettingsFile(Path(path), partial(load, args, dict(environ), unknown), known)


def load_model(
    model: type[_Model],
    args: Namespace,
    environ: Mapping[str, str],
    unknown: Sequence[str] = (),
    other_programs: Mapping[str, Place] = {},
) -> _Model:
    """Load any model of settings as `load` does; `other_programs` maps variables of other programs to settings."""
    search = _Search(_catalogue(model), args, environ)
    search.add(search.flags(unknown))
    file = search.file()  # before the variables, because they can name map entries of the file
    search.add(search.variables(file))
    search.add(file)
    search.mistakes += search.file_mistakes
    search.add(search.other_programs(other_programs))
    search.reject_references()
    search.read_files()
    try:
        settings = model.model_validate(search.nested())
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        search.mistakes += map(search.mistake, errors[: _MAX_MISTAKES + 1])
    if mistakes := [*dict.fromkeys(search.mistakes)]:
        if len(mistakes) > _MAX_MISTAKES:
            mistakes[_MAX_MISTAKES:] = ["more mistakes follow; correct these first"]
        raise SettingsError(mistakes)
    return settings


def _file(args: Namespace, environ: Mapping[str, str]) -> str:
    """Return the path of the YAML file; empty if there is none."""
    return str(getattr(args, "config", None) or environ.get("CHATRPC_CONFIG", ""))


class _Search:
    """The entries found so far, from the strongest source to the weakest: values, their places, and all mistakes."""

    def __init__(self, root: Group, args: Namespace, environ: Mapping[str, str]) -> None:
        self.mistakes: list[str] = []
        self.file_mistakes: list[str] = []
        self._root, self._args, self._environ = root, args, environ
        self._values, self._where = dict[Place, Any](), dict[Place, str]()

    def flags(self, unknown: Sequence[str]) -> Iterator[Entry]:
        """Yield the settings that flags give; report arguments that belong to no flag."""
        if unknown and not unknown[0].startswith("-"):
            self.mistakes.append("the command line: an argument belongs to no flag; remove it")
        known = {catalogue.flag(place): place for place in catalogue.leaves(self._root)}
        for flag, place in known.items():
            if (name := ".".join(place)) in self._args:
                value = getattr(self._args, name)  # a list for flags that can be repeated
                yield from self._given(place, ",".join(value) if isinstance(value, list) else value, flag)
        # The argument after an unknown flag can be its value, a secret, so it is not shown.
        for argument in unknown:
            flag = argument.partition("=")[0]
            place = tuple(flag[2:].replace("-", "_").split("."))
            if self._is_inside_map(place):
                shown = catalogue.without_secrets(self._root, place)
                variable = catalogue.variable(shown)
                flag = flag if shown == place else catalogue.flag(shown)
                self.mistakes.append(f"{flag}: has no flag; use the settings file, or {variable} in the environment")
            elif flag.startswith("-"):
                shown = catalogue.without_secrets(self._root, place)
                where = flag if shown == place or len(flag) <= len("-x") else catalogue.flag(shown)
                self.mistakes.append(_unknown(where, flag, ["--config", *known]))

    def variables(self, file: Iterable[Entry]) -> Iterator[Entry]:
        """Yield the settings that `CHATRPC_*` variables give. They can refer to names of map entries in `file`."""
        entry_names = _entry_names([*self._where, *(entry.place for entry in file)])
        for name, value in self._environ.items():
            if not value or not re.match(_OURS, f"{name}={value}"):
                continue
            place = catalogue.variable_place(self._root, name, entry_names)
            if place is None:
                known = [catalogue.variable(each) for each in catalogue.leaves(self._root, entry_names=entry_names)]
                where = f"{catalogue.variable_without_secrets(self._root, name)} in the environment"
                self.mistakes.append(_unknown(where, name, ["CHATRPC_CONFIG", *_CLIENTS, *known]))
            else:
                yield from self._given(place, value, f"{name} in the environment")

    def other_programs(self, places: Mapping[str, Place]) -> Iterator[Entry]:
        """Yield the settings that variables of other programs give."""
        for name, place in places.items():
            if value := self._environ.get(name):
                yield Entry(place, value, f"{name} in the environment")

    def file(self) -> list[Entry]:
        """Return the settings that the YAML file gives. Raises SettingsError if it cannot be read as a whole."""
        path = _file(self._args, self._environ)
        if not path:
            return []
        try:
            found = YamlFile(path, self._root, self.file_mistakes).entries()
        except UnreadableFile as error:
            list(self.variables(()))  # for their mistakes
            # No value is checked: without the file's settings, valid settings that depend on them would be reported.
            raise SettingsError([*self.mistakes, str(error)]) from None
        entries: list[Entry] = []
        for entry in found:
            node = node_at(self._root, entry.place)
            if node is None:
                entry_names = _entry_names([entry.place for entry in entries])
                groups = [dotted(place[:n]) for place in catalogue.leaves(self._root) for n in range(1, len(place))]
                settings = [dotted(place) for place in catalogue.leaves(self._root, entry_names=entry_names)]
                self.file_mistakes.append(_unknown(entry.where, dotted(entry.place), [*settings, *groups]))
            else:
                entries += [entry] if isinstance(node, Group) else self._given(*entry)
            if len(self.file_mistakes) > _MAX_MISTAKES:
                break
        return entries

    def add(self, entries: Iterable[Entry]) -> None:
        """Add the entries of one source that no stronger source has given.

        A secret and the file that contains it count as one setting: a stronger source of one overrides the other.
        """
        source = {entry.place: entry for entry in entries}
        for place, entry in source.items():
            other = self._other_form(place)
            if other in source and place[-1].endswith("_file"):
                self.mistakes.append(f"{entry.where}: give this or {source[other].where}, not both")
        weaker = {place for place in source if place in self._values or self._other_form(place) in self._values}
        for place, entry in source.items():
            if place not in weaker:
                self._values[place], self._where[place] = entry.value, entry.where

    def reject_references(self) -> None:
        """Report values that refer to a variable, because they are not replaced."""
        for place, value in list(self._values.items()):
            is_entry = isinstance(node_at(self._root, place[:-1]), GroupMap)
            texts = [*(value if isinstance(value, list) else [value]), *(place[-1:] if is_entry else ())]
            if any(isinstance(text, str) and _REFERENCE.search(text) for text in texts):
                problem = self._reference(place, place[:-1] if is_entry else place)
                self.mistakes.append(f"{self._where[place]}: {problem}")
                del self._values[place]

    def _reference(self, place: Place, setting: Place) -> str:
        """Return the problem and remedy of a reference to a variable at `place`, which belongs to `setting`."""
        other = self._other_form(place)
        remedies = [dotted(other)] if other and not place[-1].endswith("_file") else []
        if not self._where[place].endswith("in the environment"):
            remedies.append(f"{catalogue.variable(setting)} in the environment")
        remedy = f"use {' or '.join(remedies)}" if remedies else "give the value itself"
        return f"must not be a reference to a variable, such as ${{NAME}}, because it is not replaced; {remedy}"

    def read_files(self) -> None:
        """Read the files that contain secrets. Check of other files only that they are readable and not empty."""
        for place, file in list(self._values.items()):
            node = node_at(self._root, place)
            if not isinstance(node, Setting) or node.kind != "a path" or not isinstance(file, str):
                continue
            where, secret = self._where[place], self._other_form(place)
            try:
                content = files.read(file).strip()
                if not content:
                    self.mistakes.append(f"{where}: the file is empty; name a file with content")
                elif secret and _REFERENCE.search(content.decode()):
                    self.mistakes.append(f"{where}: the file contains a reference to a variable; put the value into it")
                elif secret:
                    self._values[secret], self._where[secret] = content.decode(), where
            except (OSError, ValueError) as error:
                self.mistakes.append(f"{where}: the file cannot be read: {files.reason(error)}; name a readable file")

    def nested(self) -> dict[str, Any]:
        """Return the values in the shape of the model."""
        nested: dict[str, Any] = {}
        for place, value in self._values.items():
            holder = nested
            for name in place[:-1]:
                holder = holder.setdefault(name, {})
            if isinstance(node_at(self._root, place), Group):
                holder.setdefault(place[-1], {})
            else:
                holder[place[-1]] = value
        return nested

    def mistake(self, detail: ErrorDetails) -> str:
        """Return the message for an error of the model."""
        path = tuple(str(name) for name in detail["loc"] if name != "[key]")
        places = (path[:length] for length in range(len(path), 0, -1))
        place = next(place for place in places if place in self._where or self._is_leaf(place))
        inside = (where for each, where in self._where.items() if each[: len(place)] == place)
        where = next(inside, f"{dotted(place)}, at its default")
        if detail["type"] == "value_error":
            return f"{where}: {detail['ctx']['error']}"
        return f"{where}: must be {catalogue.kind_of(node_at(self._root, place))}"

    def _is_inside_map(self, place: Place) -> bool:
        parents = (place[:length] for length in range(1, len(place)))
        return isinstance(node_at(self._root, place), Setting) and any(
            isinstance(node_at(self._root, parent), GroupMap) for parent in parents
        )

    def _is_leaf(self, place: Place) -> bool:
        return isinstance(node_at(self._root, place), Setting | GroupMap)

    def _given(self, place: Place, value: Any, where: str) -> Iterator[Entry]:
        """Yield the entry of a setting. For a map given as names alone, yield one entry without settings per name."""
        if not isinstance(node_at(self._root, place), GroupMap):
            yield Entry(place, value, where)
            return
        names = names_in(value)
        if names is None:
            yield Entry(place, value, where)  # for the model to report
        for name in names or ():
            yield Entry((*place, name), {}, where)

    def _other_form(self, place: Place) -> Place | None:
        """Return the file of a secret, or the secret of a file, if the model has both forms of the setting."""
        *parent, name = place
        other = (*parent, name.removesuffix("_file") if name.endswith("_file") else f"{name}_file")
        pair = (node_at(self._root, place), node_at(self._root, other))
        is_secret = any(isinstance(node, Setting) and node.kind == "text, secret" for node in pair)
        return other if is_secret and None not in pair else None


def _unknown(where: str, name: str, known: Iterable[str]) -> str:
    others = [each for each in known if not name.startswith(f"{each}.")]  # because the group itself is no mistake
    nearest = get_close_matches(name[:_LONGEST_NAME], others, n=1)
    remedy = f"did you mean {nearest[0]}?" if nearest else "see chatrpc-server serve --help"
    if nearest and nearest[0] in _CLIENTS:  # because the hint must not send a caller's key to the upstream
        remedy = f"did you mean {nearest[0]} of the clients, which the service ignores?"
    return f"{where}: unknown setting; {remedy}"


def _entry_names(places: Iterable[Place]) -> EntryNames:
    """Return a function from a map's path to the names of its entries, as found in `places`."""
    known = list(places)

    def entry_names(place: Place) -> Iterable[str]:
        size = len(place)
        return dict.fromkeys(each[size] for each in known if len(each) > size and each[:size] == place)

    return entry_names
