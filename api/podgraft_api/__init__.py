"""The resources: LivePatch, NodePatch, and their CRDs."""
