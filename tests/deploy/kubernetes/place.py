"""What every program of a cluster is told: where it is, who is who there, and where it finds what."""

from dataclasses import dataclass
from pathlib import Path

from deploy.kubernetes.identities import Identities

CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Place:
    """`number` is that of the machine: 0 has no node."""

    tools: Path
    folder: Path
    who: Identities
    address: str
    number: int

    @property
    def pods(self) -> str:
        """Their addresses."""
        return f"10.{self.number}.0.0/24"

    @property
    def services(self) -> str:
        """Their addresses."""
        return f"10.{self.number}.1.0/24"

    def program(self, name: str, ready: str = "", **flags: object) -> "Program":
        """One of the tools, with flags in which a `_` stands for `-`."""
        arguments = [f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()]
        return Program(name, [str(self.tools / name), *arguments], ready)


@dataclass(frozen=True)
class Program:
    """What to run, and the URL that answers when it is ready, if it has one."""

    name: str
    command: list[str]
    ready: str
