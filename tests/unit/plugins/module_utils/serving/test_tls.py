# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A certificate and its key, before a server needs them."""

from __future__ import annotations

import os
import pwd
import subprocess

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.serving import tls
from ansible_collections.gpufleet.inference.plugins.module_utils.toolbox.errors import Refused

USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two certificates with their keys, and one of these keys encrypted."""
    path = tmp_path_factory.mktemp("tls")
    for name in "ab":
        words = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=%s -days 2 -keyout %s.key -out %s.pem"
        subprocess.run((words % (name, name, name)).split(), cwd=path, check=True, capture_output=True)
    words = "openssl rsa -aes128 -passout pass:sesame -in a.key -out locked.key"
    subprocess.run(words.split(), cwd=path, check=True, capture_output=True)
    os.mkfifo(path / "pipe")
    return path


def check(folder, certificate, key, user=USER):
    tls.check(("ssl_certfile", str(folder / certificate)), ("ssl_keyfile", str(folder / key)), user)


def test_a_pair(folder):
    check(folder, "a.pem", "a.key")


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("a.pem", "b.key", "are not a certificate and its unencrypted key"),
        ("a.key", "a.key", "are not a certificate"),
        ("a.pem", "locked.key", "the key is encrypted"),
        ("nosuch", "a.key", "ssl_certfile: user .* cannot read .*nosuch: No such file"),
        ("a.pem", "nosuch", "ssl_keyfile: user .* cannot read .*nosuch: No such file"),
    ],
)
def test_what_is_refused(folder, certificate, key, words):
    with pytest.raises(Refused, match=words):
        check(folder, certificate, key)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as somebody else")
def test_a_key_that_only_root_can_read(folder, tmp_path_factory):
    (folder / "a.key").chmod(0o600)
    for parent in (folder, *folder.parents):
        if str(parent).startswith(str(tmp_path_factory.getbasetemp())):
            parent.chmod(0o755)
    with pytest.raises(Refused, match="ssl_keyfile: user daemon cannot read .*a.key: Permission denied"):
        check(folder, "a.pem", "a.key", "daemon")
