"""Which ensembles need which models, and which models somebody asked for by name. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from conch.types.error import InferError, invalid


class Dependents:
    """The models that were read and not unloaded since, whether they could be loaded or not."""

    def __init__(self) -> None:
        #: Each model's needs.
        self._models: dict[str, tuple[str, ...]] = {}
        self._asked: set[str] = set()

    def note(self, name: str, needs: Sequence[str], *, asked: bool) -> None:
        """`needs` are the models of an ensemble's steps. A model once asked for stays so until it is removed."""
        self._models[name] = tuple(dict.fromkeys(needs))
        if asked:
            self._asked.add(name)

    def ask(self, name: str) -> None:
        """Somebody asked for it by name, and it may not have been read yet."""
        self._asked.add(name)

    def knows(self, name: str) -> bool:
        return name in self._models

    def needs(self, name: str) -> tuple[str, ...]:
        return self._models.get(name, ())

    def dependents(self, name: str) -> list[str]:
        """The ensembles that have a step of this model."""
        return [other for other, needs in self._models.items() if name in needs]

    def affected(self, names: Iterable[str], but: Collection[str] = ()) -> list[list[str]]:
        """All ensembles above these models, but for some: those of each list need only such as stand in lists before.

        Ensembles of a circle come last.
        """
        left: list[str] = []
        waiting = list(names)
        while waiting:
            for above in self.dependents(waiting.pop(0)):
                if above not in left and above not in but:
                    left.append(above)
                    waiting.append(above)
        levels = []
        while left:
            level = [each for each in left if not set(self.needs(each)) & set(left)] or left
            levels.append(level)
            left = [each for each in left if each not in level]
        return levels

    def circle(self, name: str) -> str:
        """The ensemble through which `name` needs itself; empty when it does not."""
        seen = {name}
        waiting = [name]
        while waiting:
            current = waiting.pop()
            for needed in self.needs(current):
                if needed == name:
                    return current
                if needed not in seen:
                    seen.add(needed)
                    waiting.append(needed)
        return ""

    def remove(self, name: str, *, cascade: bool) -> list[str]:
        """Unload a model; with `cascade` also what only it needed and nobody asked for. Returns what goes, in order."""
        gone = []
        waiting = [name]
        while waiting:
            current = waiting.pop(0)
            needs = self._models.pop(current, None)
            self._asked.discard(current)
            if needs is None:
                continue
            gone.append(current)
            if cascade:
                waiting += [
                    needed
                    for needed in needs
                    if needed in self._models and needed not in self._asked and not self.dependents(needed)
                ]
        return gone


def lacking(depends: str, model: str, failure: InferError | None, *, ensemble: bool) -> InferError:
    """Why an ensemble cannot do without `model`, whose last load ended with `failure`, in Triton's words."""
    if failure is None:
        return invalid(f"{depends} which has no loaded version.")
    text = failure.message.removeprefix(f"load failed for model '{model}': ").removesuffix("\n")
    if ensemble:
        return invalid(f"{depends} which is not valid. Model '{model}' failed with error: {text}", failure.hint)
    return invalid(
        f"{depends} which has no loaded version. Model '{model}' loading failed with error: {text}", failure.hint
    )
