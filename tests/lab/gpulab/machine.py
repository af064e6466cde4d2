# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this machine hands to its lab hosts so that they reach the package mirrors as it does itself.

Read when the lab goes up, written into the hosts, never into the repository.
"""

from __future__ import annotations

import configparser
import os
import subprocess
from pathlib import Path
from typing import Callable, Iterable, List, Mapping, Optional

from gpulab.errors import LabError

RELEASES = {"bullseye": 11, "bookworm": 12, "trixie": 13}
#: The Debian of the hosts
RELEASE = os.environ.get("GPUFLEET_RELEASE") or "bookworm"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# Where a CA bundle may be named, the most particular first; then where distributions keep theirs.
CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
CA_FILES = (CA_BUNDLE, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem")

# The settings of pip that say how an index is reached; all others are this machine's own business.
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "timeout", "retries")

PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")

# What `apt-get indextargets` is asked for. ORIGIN is empty until the first `apt-get update`.
APT_FORMAT = "$(REPO_URI)|$(RELEASE)|$(ORIGIN)|$(COMPONENT)"


def ca_bundle(env: Mapping[str, str], is_file: Callable[[str], bool] = os.path.isfile) -> Optional[str]:
    """Path of the CA bundle this machine trusts, or None."""
    named = [env[name] for name in CA_VARIABLES if env.get(name)]
    return next((path for path in [*named, *CA_FILES] if is_file(path)), None)


def apt_sources(indextargets: str, read_text: Callable[[str], str] = lambda path: Path(path).read_text()) -> List[str]:
    """Lines of a sources.list for the hosts' release from the mirrors that apt uses here.

    `indextargets` is the output of `apt-get indextargets --format APT_FORMAT`. A mirror of any Debian release will do,
    as mirrors carry them all; repositories of others are left out. `mirror+file:` lists give their first entry.
    """
    lines = []
    for target in indextargets.splitlines():
        uri, suite, origin, component = target.split("|")
        if component != "main" or not (origin == "Debian" or (not origin and suite.startswith(tuple(RELEASES)))):
            continue
        kind = next(
            (kind for kind in ("-security", "-updates", "-backports", "-proposed-updates") if suite.endswith(kind)), ""
        )
        if kind not in ("", "-security", "-updates"):
            continue
        if uri.startswith("mirror+file:"):
            mirrors = (
                line.split("#")[0].split() for line in read_text(uri[len("mirror+file:") :].rstrip("/")).splitlines()
            )
            uri = next(words[0] for words in mirrors if words)
        line = "deb %s %s main" % (uri, RELEASE + kind)
        if line not in lines:
            lines.append(line)
    return lines


def pip_config(texts: Iterable[str], env: Mapping[str, str], ca: bool) -> str:
    """A pip.conf that reaches the index as this machine does, from its own pip.conf texts and PIP_* variables.

    The texts come in pip's order, the later wins; variables win over all. With `ca` the certificate is the bundle that
    the host was given. Links to folders are left out: the host does not have them.
    """
    found = {}
    for text in texts:
        parser = configparser.RawConfigParser()
        parser.read_string(text)
        for section in ("global", "install", "download"):
            if parser.has_section(section):
                found.update((name.replace("_", "-"), value) for name, value in parser.items(section))
    for name, value in env.items():
        if name.startswith("PIP_"):
            found[name[len("PIP_") :].lower().replace("_", "-").replace("default-timeout", "timeout")] = value
    found["find-links"] = " ".join(link for link in found.get("find-links", "").split() if "://" in link)
    settings = ["%s = %s" % (name, " ".join(found[name].split())) for name in PIP_SETTINGS if found.get(name)]
    if ca:
        settings.append("cert = " + CA_BUNDLE)
    return "".join(line + "\n" for line in ["[global]", *settings])


def proxies(env: Mapping[str, str]) -> str:
    """Lines for /etc/environment: the proxy settings of this machine, in both spellings."""
    found = {}
    for name in PROXY_VARIABLES:
        value = env.get(name) or env.get(name.upper())
        if value:
            found[name] = found[name.upper()] = value
    return "".join('%s="%s"\n' % item for item in found.items())


def read_apt_sources() -> List[str]:
    """`apt_sources` of this machine; empty where it has no apt or no Debian mirror."""
    try:
        asked = ["apt-get", "indextargets", "--format", APT_FORMAT, "Created-By: Packages"]
        return apt_sources(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []


def read_apt_options() -> str:
    """apt's own settings here for reaching mirrors (proxies, certificates), in the form of apt.conf."""
    asked = ["apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire::http", "Acquire::https"]
    try:
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def read_pip_config(env: Mapping[str, str], ca: bool) -> str:
    """`pip_config` of this machine."""
    home = Path(env.get("HOME", "/root"))
    paths = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), home / ".pip/pip.conf"]
    paths.append(Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf")
    if env.get("PIP_CONFIG_FILE"):
        paths.append(Path(env["PIP_CONFIG_FILE"]))
    try:
        return pip_config([path.read_text() for path in paths if path.is_file()], env, ca)
    except configparser.Error as error:
        raise LabError("pip's settings cannot be read (%s): correct them, pip itself would stop too" % error) from None


def write_files(folder: Path, env: Mapping[str, str]) -> None:
    """Write everything that a host gets from this machine as a tree below `folder`, to be copied over its `/`."""
    bundle = ca_bundle(env)
    files = {
        "etc/apt/sources.list": "".join(line + "\n" for line in read_apt_sources()),
        "etc/apt/apt.conf.d/90machine": read_apt_options(),
        "etc/environment": proxies(env),
        "etc/pip.conf": read_pip_config(env, bool(bundle)),
    }
    if bundle:
        files[CA_BUNDLE.lstrip("/")] = Path(bundle).read_text()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if bundle:
        # Without this, Python and other users of OpenSSL's defaults would look into the image's folder of single files.
        (folder / "usr/lib/ssl").mkdir(parents=True, exist_ok=True)
        (folder / "usr/lib/ssl/cert.pem").symlink_to(CA_BUNDLE)
