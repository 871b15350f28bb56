# SPDX-License-Identifier: GPL-2.0-only
"""A process as the kernel shows it: files of /proc, memory, mapped modules, one held thread."""
