# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend beside everything else that multiplies by quantized weights on a GPU."""
