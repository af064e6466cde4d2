#!/bin/sh
# Prints everything that a rejected change must not touch.
systemctl show 'ollama@*' -p Id,InvocationID,ActiveState,UnitFileState
find /etc/systemd/system /usr/local -printf '%p %m %u %T@ %l\n' | sort
