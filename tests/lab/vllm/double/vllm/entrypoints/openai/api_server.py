# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module form of the command, which the real one calls deprecated but starts."""

if __name__ == "__main__":
    from vllm.server import main

    main()
