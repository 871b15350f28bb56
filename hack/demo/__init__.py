"""The promise, shown: running Redis servers get a fix under load, and give it back."""
