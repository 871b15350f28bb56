"""Random kills, restarts, scaling and edits on the local cluster, and what clients and state say to it."""
