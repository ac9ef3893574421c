"""Telemetry for operators: metrics and their exporter, traces, logs."""
