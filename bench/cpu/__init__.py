# SPDX-License-Identifier: Apache-2.0
"""The CPU backend beside everything else that multiplies by quantized weights on a CPU."""
