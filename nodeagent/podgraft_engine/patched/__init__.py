# SPDX-License-Identifier: GPL-2.0-only
"""What of ours lies in the target: the state, and the pages that were switched."""
