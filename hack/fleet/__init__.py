"""Redis pods under load on the local cluster, seen from the host, for the end-to-end tests and the chaos run."""
