# SPDX-License-Identifier: Apache-2.0
"""`quanto tune`: measures tiles on this machine's GPU, and keeps the best ones in a table of the user."""
