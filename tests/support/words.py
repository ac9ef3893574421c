"""Words and phrases that plain technical English does without, found in all text of the repository.

    python tests/support/words.py [PATH ...]

Checks the tracked files below the paths, by default all: documentation, comments, docstrings, strings, names. Prints
`path:line: word; remedy` for each finding and exits with 1 if there is one. EXCEPTIONS lists the justified uses.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

REMEDIES = {
    "nobody|somebody|anybody|everybody|whoever|whomever": "name the actor: caller, upstream, process",
    "whatever": "use the noun",
    "of no use": "invalid, unused",
    "to be had": "available",
    "(is|are|was|were|be|been|being) told": "receives",
    "tell|tells|telling|told": "report, state, show, distinguish",
    "(is|are|was|were) to (?!blame)[a-z]+": "must, can, will",
    "would be to": "must, can, will",
    "as [a-z]+ says": "state the fact and its source",
    "(try|tries|tried|trying) again": "retry",
    "anew": "again, regenerate",
    "in vain": "without success",
    "what lives": "use the noun",
}
"""Pattern to remedy. A space stands for any space, line break with comment marks, or underscore."""

IGNORED = (
    "LICENSE",
    "requirements/*.txt",
    "*/package-lock.json",
    "*/Cargo.lock",
    "*/go.sum",
    "*.svg",
    "*.expected",
    "clients/typescript/src/gen/*",
    "protos/python/src/chatrpc/*",
    "tests/fixtures/*",
    "tests/robustness/fuzz/corpus/*",
    "tests/support/words.py",
    "tests/unit/test_words.py",
)
"""Files with text of others, generated files, data, and the two files that must name the words."""

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("service/chatrpc_echo/errors.py", "please try again later"): "a message of OpenAI's API, word for word",
    ("service/chatrpc_server/core/openai/error_words.py", "try again in"): "words of providers",
    ("tests/unit/test_error_codes.py", "ry again"): "words of providers",
    ("tests/support/faults.py", "Please try again in 20ms"): "words of providers",
}
"""Path and a part of the line to the reason why the word may stay there."""

_GAP = r"(?:[\s_#*/;\"']+)"
_PATTERNS = [
    (re.compile(rf"(?<![A-Za-z])(?:{words.replace(' ', _GAP)})(?![A-Za-z])", re.IGNORECASE), remedy)
    for words, remedy in REMEDIES.items()
]


class Finding(NamedTuple):
    """A banned word and its place."""

    path: str
    line: int
    word: str
    remedy: str
    text: str
    """The whole line."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word}; {self.remedy}"


def findings(path: str, text: str) -> Iterator[Finding]:
    """Yield the banned words of a file, each place once."""
    lines = text.split("\n")
    seen: set[int] = set()
    for pattern, remedy in _PATTERNS:
        for match in pattern.finditer(text):
            if match.end() not in seen:  # the pattern of a phrase precedes that of its word
                seen.add(match.end())
                number = text.count("\n", 0, match.start()) + 1
                yield Finding(path, number, " ".join(match[0].split()), remedy, lines[number - 1])


def excepted(finding: Finding) -> tuple[str, str] | None:
    """Return the exception that allows this finding."""
    return next((key for key in EXCEPTIONS if key[0] == finding.path and key[1] in finding.text), None)


def tracked(paths: Sequence[str]) -> list[str]:
    """Return the paths of the tracked files to check."""
    listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file()]
    return [path for path in files if not any(fnmatchcase(path, pattern) for pattern in IGNORED)]


def main(paths: Sequence[str]) -> int:
    """Print the findings, and the exceptions that no line needs any more; return the exit code."""
    used: set[tuple[str, str]] = set()
    problems = []
    files = tracked(paths)
    for path in files:
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for finding in sorted(findings(path, text), key=lambda finding: finding.line):
            key = excepted(finding)
            if key:
                used.add(key)
            else:
                problems.append(str(finding))
    stale = [key for key in EXCEPTIONS if key[0] in files and key not in used]
    problems += [f"{path}: no line with {part!r} needs an exception; remove it" for path, part in stale]
    print("\n".join(problems), end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
