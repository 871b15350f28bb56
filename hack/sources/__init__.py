"""Sources that the demo and the tests build: from a folder, else from Debian by apt, always checked by SHA-256."""
