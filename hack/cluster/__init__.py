"""A three-node Kubernetes for tests and the demo: kind where docker works, else made from Linux namespaces."""
