"""Traces. The only place that imports OpenTelemetry, itself imported only where traces are wanted."""
