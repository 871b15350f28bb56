# SPDX-License-Identifier: GPL-2.0-only
"""A thread of our own in the target: its home, its birth, its mailbox, the calls that it makes."""
