"""A fleet of simulated nodes around a real API server, etcd and operator: what a rollout costs, and how that grows."""

import sys

from hack.tools import REPOSITORY

# The tests' way to run an API server; they import each other by these names.
sys.path.insert(0, str(REPOSITORY / "tests" / "operator"))
