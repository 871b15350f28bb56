"""The operator: LivePatches in, work for each node out, one status back. `world` remembers, `rollout` decides."""
