# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether PostgreSQL's database can be saved and put back: asked before a change, when it is not too late."""

from __future__ import annotations

import shutil
import subprocess
from typing import List, Optional

from ..programs.open_webui_data import variables
from ..toolbox.text import one_line
from ..toolbox.users import home

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the unit finds programs."""
TOOLS = ("pg_dump", "pg_restore", "psql")
_LIMIT = 30  # seconds for a command
_PSQL = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command"]
_UNFIT = """
SELECT 'schema public belongs to ' || pg_get_userbyid(nspowner) || ', not to ' || current_user
  FROM pg_namespace WHERE nspname = 'public' AND NOT pg_has_role(nspowner, 'USAGE')
UNION ALL
SELECT current_user || ' may not create schemas' WHERE NOT has_database_privilege(current_database(), 'CREATE')
UNION ALL
SELECT 'only a superuser can put back its extension ' || extname
  FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace AND nspname = 'public'
  JOIN pg_available_extension_versions ON name = extname AND version = extversion AND NOT trusted
 WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
"""


def obstacle(url: str, users_needed: bool) -> Optional[str]:
    """Why this database cannot be used; None if it can. Asked with the rights of the service's user.

    :param users_needed: whether it must have a user already.
    """
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=PATH)]
    if missing:
        return "database_url needs %s for backups: install PostgreSQL's client" % ", ".join(missing)
    try:
        unfit = _run([*_PSQL, _UNFIT], url)
        if unfit:
            found = ", ".join(unfit.splitlines())
            return "database_url: a backup of this database could not be put back: %s" % one_line(found)
        _run(["pg_dump", "--schema-only", "--file=/dev/null"], url)
        if users_needed and not _has_users(url):
            return "admin_email: the database has no user yet; give admin_email and admin_password"
    except subprocess.CalledProcessError as error:
        return "database_url: %s says %s" % (error.cmd[0], one_line(error.stderr.strip()) or "nothing")
    except subprocess.TimeoutExpired as error:
        return "database_url: %s did not end within %d s" % (error.cmd[0], _LIMIT)
    return None


def _has_users(url: str) -> bool:
    try:
        return bool(_run([*_PSQL, 'SELECT 1 FROM public."user" LIMIT 1'], url))
    except subprocess.CalledProcessError:
        return False  # there is no such table before the first start


def _run(command: List[str], url: str) -> str:
    # nothing of root's: the user could read it in /proc, but not the certificates in root's home
    environment = {"PATH": PATH, "LC_ALL": "C", "HOME": home(), "PGCONNECT_TIMEOUT": "10", **variables(url)}
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=_LIMIT,
        check=True,
    )
    return done.stdout.strip()
