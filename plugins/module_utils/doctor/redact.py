# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text without secrets: without those that are known, and without what looks like one. Pure."""

from __future__ import annotations

import re
from typing import Callable, Iterable, Mapping

from ..converge.override import SECRET, spellings
from ..serving.adopt import SECRET_NAME
from ..toolbox.text import printable

# bounded: anybody may write a long line into a log
_NAME = r"[\w.-]{0,40}(?:key|token|secret|passw|credential|auth)[\w.-]{0,40}"
_VALUE = r"""(?:\\?"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"',;]+)"""
_RULES = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), text)
    for pattern, text in (
        (r"-----BEGIN [^-]*PRIVATE KEY-{5}.*?(?:-----END [^-]*-----|\Z)", SECRET),
        (r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{6,}", r"\1" + SECRET),
        (r"://[^/@\s]*@", "://%s@" % SECRET),
        (r"\b(?:hf_|sk-|ghp_|github_pat_|glpat-|nvapi-|xox[a-z]-|AKIA)[\w-]{8,}", SECRET),
        (r"(--?%s[= ]\s*)%s" % (_NAME, _VALUE), r"\1" + SECRET),
        (r"""(\\?["']?\b%s\\?["']?\s*[=:]\s*)%s""" % (_NAME, _VALUE), r"\1" + SECRET),
    )
)
"""What looks like a secret, whoever wrote it: rather too much is removed than too little."""


def redactor(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function that removes these secrets, however they are spelled, and what looks like one."""
    known = sorted(set().union(*map(spellings, set(secrets))), key=len, reverse=True)

    def clean(text: str) -> str:
        for secret in known:
            text = text.replace(secret, SECRET)
        for pattern, replaced in _RULES:
            text = pattern.sub(replaced, text)
        return printable(text)

    return clean


def secret_values(variables: Mapping[str, str], private: bool) -> Iterable[str]:
    """The values of variables that are secrets: all of a private file's, else those that are named like one."""
    found = [text for name, text in variables.items() if private or SECRET_NAME.search(name)]
    return [text for text in found if text.lower() not in ("true", "false", "none", "null")]
