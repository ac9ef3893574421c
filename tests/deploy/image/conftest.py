"""Tests of the image; collected only after tests/deploy/image/run has built it."""

import os

collect_ignore_glob = [] if "CONTAINERS_STORAGE_CONF" in os.environ else ["test_*.py"]
