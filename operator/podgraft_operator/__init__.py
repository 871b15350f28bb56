"""LivePatches in, work for each node out, one status back. kopf watches, `world` remembers, `rollout` decides."""
