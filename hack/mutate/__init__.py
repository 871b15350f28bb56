"""`make mutate`: random edits; a patched process must behave as one that was started with the edited source."""
