#!/bin/sh
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints everything that a rejected change must not touch.
systemctl show 'ollama@*' -p Id,InvocationID,ActiveState,UnitFileState
find /etc/systemd/system /usr/local -printf '%p %m %u %T@ %l\n' | sort
