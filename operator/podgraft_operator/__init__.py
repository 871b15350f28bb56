"""The operator: LivePatches in, work for each node out, one status back. kopf watches, `rollout` decides."""
