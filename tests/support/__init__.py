"""Shared parts of the tests: the service on a loopback channel, calls and their outcomes, a scripted upstream."""

from support.calls import Outcome, collect, failure, outcome, request
from support.running import ANY_PORT, Service, service, settings
from support.scripted import Answer, Exchange, Script, http, sse

__all__ = [
    "ANY_PORT",
    "Answer",
    "Exchange",
    "Outcome",
    "Script",
    "Service",
    "collect",
    "failure",
    "http",
    "outcome",
    "request",
    "service",
    "settings",
    "sse",
]
