# SPDX-License-Identifier: GPL-2.0-only
"""The threads of the program: is one quiescent, may it move, who is left."""
