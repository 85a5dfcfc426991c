# SPDX-License-Identifier: Apache-2.0
"""What integrations in other libraries share, and no one library owns.

Nothing here is imported by `import quanto`.
"""

__all__: list[str] = []
