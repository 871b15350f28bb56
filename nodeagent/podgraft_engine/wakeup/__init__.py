# SPDX-License-Identifier: GPL-2.0-only
"""Wake-up points: a thread that wakes from a blocking call looks at its own stack and migrates itself (design 5, b)."""
