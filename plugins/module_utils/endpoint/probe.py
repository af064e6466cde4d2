# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an endpoint is ready, answers and is idle, for the module ``inference_endpoint``."""

from __future__ import annotations

import time
from typing import Any, Dict, Mapping, Optional

from ..toolbox.errors import Failed
from ..toolbox.http_stream import HttpError
from .answers import answer
from .client import Endpoint, EndpointError, Load


def probe(params: Mapping[str, Any], check_mode: bool, warn: Any) -> Dict[str, Any]:
    """The work of the module ``inference_endpoint``; it only reads.

    :returns: the module's result.
    :raises Refused: an option is wrong.
    :raises Failed: the endpoint does not do what was asked for.
    """
    try:
        return _probe(params)
    except EndpointError as error:
        raise Failed("%s: %s" % (error.name, error), {"changed": False, "verdict": error.name}) from None


def _probe(params: Mapping[str, Any]) -> Dict[str, Any]:
    begun = time.monotonic()
    endpoint: Any = Endpoint(params["url"], params["api_key"], params["validate_certs"], params["ca_path"])
    names = endpoint.wait_ready(params["timeout"], params["model"])
    left = max(1.0, begun + params["timeout"] - time.monotonic())
    result: Dict[str, Any] = {"changed": False, "verdict": "ok", "url": endpoint.url, "models": names}
    said = ["ok", "%d model%s" % (len(names), "s"[: len(names) != 1])]
    if params["smoke"]:
        model = params["model"] or names[0]
        answered = answer(endpoint, model, left, params["tokens"])
        if answered.seconds is None:
            raise EndpointError("not_generated", "%s at %s: %s" % (model, endpoint.url, answered.said))
        rate = answered.tokens / answered.seconds if answered.tokens and answered.seconds else None
        result.update(model=model, task=answered.task, latency_seconds=round(answered.seconds, 3))
        result["tokens_per_second"] = None if rate is None else round(rate, 2)
        what = answered.said if rate is None else "%.1f tokens/s" % rate
        said.append("%s answered in %.2f s, %s" % (model, answered.seconds, what))
    if params["state"] == "idle":
        load: Optional[Load] = endpoint.wait_idle(left)
    else:
        try:
            load = endpoint.load()
        except HttpError:
            load = None
    result["running"], result["waiting"] = (load.running, load.waiting) if load else (None, None)
    if load:
        said.append("%d running, %d waiting" % (load.running, load.waiting))
    return dict(result, elapsed_seconds=round(time.monotonic() - begun, 2), msg=" · ".join(said))
