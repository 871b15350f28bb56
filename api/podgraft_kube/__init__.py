"""The API server as the operator and the agent need it: JSON in, JSON out, and a watch that survives."""
