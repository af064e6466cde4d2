#!/bin/sh
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints every file of the host, except those that change on their own, its accounts, and the units of that name.
find / -xdev \( -path /proc -o -path /sys -o -path /tmp -o -path /run -o -path /var/log -o -path /root -o -path /home \
  -o -path /var/lib/systemd -o -path /var/lib/private -o -path /var/tmp \) -prune -o -printf '%p %m %U %l\n' | sort
cut -d: -f1,3,4 /etc/passwd /etc/group
systemctl list-unit-files --no-legend 'ollama*'
systemctl list-units --all --no-legend 'ollama*'
