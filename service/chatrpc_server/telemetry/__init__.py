"""What operators see of the service: metrics and their exporter, traces, logs."""
