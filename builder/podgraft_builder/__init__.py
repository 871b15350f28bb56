"""podgraft."""
