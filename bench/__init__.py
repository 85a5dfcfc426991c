# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each module measures and writes to `bench/results`."""
