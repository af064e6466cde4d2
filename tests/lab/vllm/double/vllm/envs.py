# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Some of the variables of the real envs.py, in its form."""

environment_variables = {
    "VLLM_API_KEY": None,
    "VLLM_LOGGING_LEVEL": None,
    "VLLM_NO_USAGE_STATS": None,
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": None,
    "VLLM_HOST_IP": None,
    "VLLM_PORT": None,
}
