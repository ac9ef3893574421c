"""The tests against an OpenTelemetry Collector; collected only if tests/interop/collector/run has built one."""

import os

collect_ignore_glob = [] if "OTELCOL" in os.environ else ["test_*.py"]
