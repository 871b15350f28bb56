"""`make heldout`: programs that the builder was not made with; each fix is built, applied, observed and reverted."""
