# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's work with its options, below a folder of the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from ansible_collections.gpufleet.inference.plugins.module_utils.model_source import source
from ansible_collections.gpufleet.inference.plugins.modules import model_source


@pytest.fixture
def bring_from(tmp_path: Path) -> Callable[..., Callable[..., Dict[str, Any]]]:
    """`bring = bring_from(name=…, source=…, url=…)`; then `bring(revision=…)` does the module's work."""

    def of(**given: Any) -> Callable[..., Dict[str, Any]]:
        params = {name: option.get("default") for name, option in model_source.argument_spec().items()}
        params.update(given, free_space_margin="0", root=str(tmp_path / "models"))
        return lambda check=False, warn=None, **more: source.converge({**params, **more}, check, warn)

    return of
