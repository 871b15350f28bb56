# SPDX-License-Identifier: GPL-2.0-only
"""Machine code: where a function can be entered, what a site jumps to, how new code is laid out."""
