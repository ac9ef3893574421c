"""Attacks on the service: hostile callers, hostile upstreams, exhausted resources.

Each file is one kind of attack, with the caller's, the bystander's and the operator's view as assertions; the table
"Hostile input" in docs/faults.md lists them. Cases that take more than a few seconds have the mark `slow`.
"""
