# SPDX-License-Identifier: Apache-2.0
"""Real models and data that package registries carry, and what each is measured by."""
