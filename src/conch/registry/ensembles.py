"""Makes one version of an ensemble servable: it opens no files, but holds the versions of the models of its steps."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from conch.backend.api import Placement
from conch.config.ensemble_members import check_members
from conch.config.ignored import ignored_fields
from conch.config.rules import validate
from conch.config.spec import model_spec
from conch.observe.latencies import SUMS, Details, latencies_of
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.labels import with_labels
from conch.registry.lifecycle import Key
from conch.registry.loader import Remember
from conch.registry.served import ServedVersion
from conch.repository.api import StoredModel
from conch.schedule.api import Scheduler
from conch.schedule.ensemble import EnsembleScheduler
from conch.schedule.ensemble_devices import residence, staying
from conch.schedule.ensemble_forms import Cast, Prepare
from conch.schedule.ensemble_graph import graph_of
from conch.schedule.ensemble_pace import Post
from conch.types.error import internal
from conch.types.model import ModelSpec

_log = logging.getLogger("conch.registry")


def is_ensemble(config: ModelConfig) -> bool:
    return config.HasField("ensemble_scheduling")


class EnsembleLoader:
    """`prepare` makes the forms of the steps' requests; `remember` is None where the server has no response cache.
    `details` are of the latencies that the ensembles' statistics keep."""

    def __init__(self, prepare: Prepare, post: Post, remember: Remember | None = None, details: Details = SUMS) -> None:
        self._prepare = prepare
        self._post = post
        self._remember = remember
        self._details = details

    def check(self, config: ModelConfig, members: Sequence[ServedVersion]) -> dict[str, int]:
        """Whether the steps fit `members`, the versions that run them. Raises InferError; returns the stages."""
        validate(config, check_io=True)
        return check_members(config, [member.config for member in members])

    def load(
        self,
        members: Sequence[ServedVersion],
        previous: Mapping[int, ServedVersion],
        config: ModelConfig,
        stored: StoredModel,
        version: int,
        key: Key,
        release: Callable[[], None],
    ) -> ServedVersion:
        """As `Loader.load`. `previous` serve until now; one that is replaced only because of its members' change goes
        on counting."""
        begun = time.monotonic()
        complete = ModelConfig()
        complete.CopyFrom(config)
        stages = self.check(complete, members)
        complete.model_transaction_policy.decoupled = any(stages.values())
        for field in ignored_fields(complete):
            _log.warning("model '%s': '%s' in its config is accepted but has no effect yet", config.name, field)
        spec = with_labels(model_spec(complete, version), complete, stored.directory)
        spec = with_members_labels(spec, complete, members)
        before = previous.get(version)
        goes_on = before is not None and dataclasses.replace(before.key, shared="") == dataclasses.replace(
            key, shared=""
        )
        if before is not None and goes_on:
            stats = before.stats
        else:
            stats = ModelStats(latencies_of(self._details, complete, decoupled=spec.decoupled))
        graph = graph_of(complete, stages)
        stays = staying(graph, [residence(member.config, member.loaded) for member in members])
        cast = Cast(graph, members, spec, self._prepare, stays)
        limit = complete.ensemble_scheduling.max_inflight_requests
        scheduler: Scheduler = EnsembleScheduler(cast, stats, self._post, limit)
        if self._remember is not None and complete.response_cache.enable:
            scheduler = self._remember(scheduler, spec, complete, stats, key)
        served = ServedVersion(
            spec,
            complete,
            stats=stats,
            scheduler=scheduler,
            loaded=Held(members),
            key=key,
            release=release,
            namespace=stored.namespace,
        )
        stats.load_seconds = time.monotonic() - begun
        return served


class Held:
    """The versions that an ensemble runs on: they are closed after it."""

    def __init__(self, members: Sequence[ServedVersion]) -> None:
        self.members = tuple(members)
        for member in self.members:
            member.hold()

    def instance(self, placement: Placement) -> NoReturn:
        raise internal("an ensemble has no instances")

    def ready(self) -> bool:
        return all(member.ready() for member in self.members)

    def everyone(self) -> Iterator[ServedVersion]:
        """The members, their members, and so on."""
        for member in self.members:
            yield member
            if isinstance(member.loaded, Held):
                yield from member.loaded.everyone()

    def close(self) -> None:
        for member in self.members:
            member.let_go()


def with_members_labels(spec: ModelSpec, config: ModelConfig, members: Sequence[ServedVersion]) -> ModelSpec:
    """Outputs without labels of their own have those of the models that write them."""
    labels: dict[str, Sequence[bytes]] = {}
    for step, member in zip(config.ensemble_scheduling.step, members, strict=True):
        known = {output.name: output.labels for output in member.spec.outputs}
        labels.update({tensor: known.get(name, ()) for name, tensor in step.output_map.items()})
    outputs = [
        each if each.labels else dataclasses.replace(each, labels=labels.get(each.name, ())) for each in spec.outputs
    ]
    return dataclasses.replace(spec, outputs=tuple(outputs))
