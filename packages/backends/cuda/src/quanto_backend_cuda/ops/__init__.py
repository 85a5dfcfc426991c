# SPDX-License-Identifier: Apache-2.0
"""Host code: each of quanto's operators as a torch operator that starts kernels."""
