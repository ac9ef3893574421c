"""The tests of the built distributions are collected only if tests/dist/run has built them."""

import os

collect_ignore_glob = [] if "DIST" in os.environ else ["test_*.py"]
