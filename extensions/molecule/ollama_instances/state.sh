#!/bin/sh
# All that a refused change must leave as it was.
systemctl show 'ollama@*' -p Id,InvocationID,ActiveState,UnitFileState
find /etc/systemd/system /usr/local -printf '%p %m %u %T@ %l\n' | sort
