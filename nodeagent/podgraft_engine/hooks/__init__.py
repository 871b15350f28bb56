# SPDX-License-Identifier: GPL-2.0-only
"""Data migration hooks: functions of a patch that the helper calls once, with a time limit (docs/hooks.md)."""
