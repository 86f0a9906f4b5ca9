"""The routes /v1/models, and which model a request means."""

from __future__ import annotations

from aiohttp import web

from vramancer_cli.errors import NotReadyError
from vramancer_cli.runtime.contracts import Deployment
from vramancer_cli.serving.connection import json_response
from vramancer_cli.serving.context import ADMIN, REGISTRY
from vramancer_cli.serving.faults import Fault, RefusedError
from vramancer_cli.serving.replies import model_card


async def models(request: web.Request) -> web.Response:
    cards = [model_card(model.name, model.created_s) for model in request.app[REGISTRY].models()]
    return json_response({"object": "list", "data": cards})


async def model(request: web.Request) -> web.Response:
    found = await deployment_of(request, request.match_info["model"])
    return json_response(model_card(found.name, found.created_s))


async def deployment_of(request: web.Request, name: str) -> Deployment:
    """Raises NotReadyError while there is a reason to wait for the model, else RefusedError with 404."""
    found = request.app[REGISTRY].find(name)
    if found is not None:
        return found
    if not request.app[REGISTRY].models():
        status = await request.app[ADMIN].status()
        if status.state != "ready":
            raise NotReadyError(status.reason)
    sentence = f"There is no model '{name}' here; /v1/models lists those that are."
    raise RefusedError(Fault(404, sentence, param="model", code="model_not_found"))
