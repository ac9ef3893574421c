"""Common parameters of a cluster's programs: folders, identities and addresses."""

from dataclasses import dataclass
from pathlib import Path

from deploy.kubernetes.identities import Identities

CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Place:
    """Parameters of one cluster. `number` is the machine's; machine 0 has no node."""

    tools: Path
    folder: Path
    who: Identities
    address: str
    number: int

    @property
    def pods(self) -> str:
        """Addresses of pods."""
        return f"10.{self.number}.0.0/24"

    @property
    def services(self) -> str:
        """Addresses of services."""
        return f"10.{self.number}.1.0/24"

    def program(self, name: str, ready: str = "", **flags: object) -> "Program":
        """Return one of the tools with flags, in which `_` stands for `-`."""
        arguments = [f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()]
        return Program(name, [str(self.tools / name), *arguments], ready)


@dataclass(frozen=True)
class Program:
    """A program, and the URL that responds when it is ready (empty without one)."""

    name: str
    command: list[str]
    ready: str
