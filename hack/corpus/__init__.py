"""`make corpus`: real fixes of real programs become bundles, and are applied while the programs run under load."""
