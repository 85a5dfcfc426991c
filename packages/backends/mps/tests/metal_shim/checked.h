// SPDX-License-Identifier: Apache-2.0
// Placeholder for accesses that are looked at.
#pragma once
