#!/bin/sh
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints everything that a run could change: the process, systemd's view of it, and files with their times.
systemctl show ollama -p MainPID,InvocationID,ActiveState,UnitFileState,NeedDaemonReload,Environment,EnvironmentFiles,DropInPaths
find /etc /usr/local /opt /srv /usr/share/ollama /var/lib/gpufleet -xdev -not -path '/etc/nvidia-sim*' -printf '%p %m %U %T@ %l\n' 2>/dev/null | sort
