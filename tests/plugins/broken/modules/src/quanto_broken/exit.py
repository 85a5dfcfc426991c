# SPDX-License-Identifier: Apache-2.0
"""Ends the process when it is imported, as a script does that nobody meant to be a module."""

import sys

sys.exit("usage: exit FILE")
