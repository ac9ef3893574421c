"""Shared parts of the tests: the service on a loopback channel, calls and their outcomes, a scripted upstream."""

from support.calls import Outcome, collect, failure, outcome, request
from support.running import ANY_PORT, Service, rested, service, settings
from support.scripted import Exchange, Responder, Script, http, sse

__all__ = [
    "ANY_PORT",
    "Exchange",
    "Outcome",
    "Responder",
    "Script",
    "Service",
    "collect",
    "failure",
    "http",
    "outcome",
    "request",
    "rested",
    "service",
    "settings",
    "sse",
]
