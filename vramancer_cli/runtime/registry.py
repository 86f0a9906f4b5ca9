"""The models that this node can be asked for, by name. One for now."""

from __future__ import annotations

from collections.abc import Sequence

from vramancer_cli.runtime.contracts import Deployment


class Registry:
    """A Registry (see contracts)."""

    def __init__(self, deployments: Sequence[Deployment] = ()) -> None:
        self._deployments = {deployment.name: deployment for deployment in deployments}

    def models(self) -> Sequence[Deployment]:
        return tuple(self._deployments.values())

    def find(self, name: str) -> Deployment | None:
        return self._deployments.get(name)
