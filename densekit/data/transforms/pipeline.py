"""Transform pipelines from the config: our own resizing and flips, and any albumentations transform by name.

Every draw comes from the generator that the data set gives for (seed, epoch, index), so a sample does not depend on
workers, ranks, or what was loaded before it.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic

from densekit.data.transforms.albumentations import Albumentations
from densekit.data.transforms.contrast import ContrastStretch
from densekit.data.transforms.copy_paste import CopyPaste
from densekit.data.transforms.deep import in_eight_bits
from densekit.data.transforms.mix_up import MixUp
from densekit.data.transforms.mixing import Mixing, Others, Pool
from densekit.data.transforms.mosaic import Mosaic
from densekit.data.transforms.resize import HorizontalFlip, Resize, ScaleJitter, VerticalFlip
from densekit.errors import plain_words
from densekit.types import IGNORE, Classes, DensekitError, Sample, Task, nearest

Transform = Callable[[Sample, np.random.Generator], Sample]

_MIXING: tuple[Callable[..., Mixing], ...] = (CopyPaste, Mosaic, MixUp)
_ALONE: tuple[Callable[..., Transform], ...] = (Resize, ScaleJitter, HorizontalFlip, VerticalFlip, ContrastStretch)
_OWN: dict[str, Callable[..., Any]] = {t.__name__: t for t in (*_ALONE, *_MIXING)}
_REFUSED = {
    "Normalize": "the model normalises by the numbers in model.normalize",
    "ToFloat": "images stay uint8 until the model normalises them",
    "FromFloat": "images stay uint8 until the model normalises them",
    "ToTensorV2": "the loader makes the tensors",
    "ToTensor3D": "the loader makes the tensors",
    "Lambda": "a config cannot hold code",
    "Compose": "a pipeline is a composition already; use Sequential",
}


class Pipeline:
    """Transforms in a row.

    Args:
        specs: one mapping a transform: ``name`` and its options. Names are our own (``Resize``, ``ScaleJitter``,
            ``HorizontalFlip``, ``VerticalFlip``, ``ContrastStretch``, ``CopyPaste``, ``Mosaic``, ``MixUp``), or any of
            albumentations 2.0.8, of which ``OneOf``, ``SomeOf`` and ``Sequential`` take a list ``transforms``.
        training: False for evaluation, where nothing may be drawn and predictions must be brought back to the original
            pixels: it takes ``Resize`` to one size, ``ContrastStretch``, and albumentations' transforms of colour alone
            (``CLAHE``, ``AutoContrast``, ...) with ``p: 1`` and without ranges to draw from; also ``CenterCrop``, which
            serves classifiers alone (``crops``).
        path: where the specs stand in the config, for messages.

    Attributes:
        epochs: length of the run, as the data set's addresses count them; None where it is not known: then no transform
            rests towards its end.

    Raises:
        DensekitError: unknown name, unknown option, wrong value, or a transform that has no place here.
    """

    def __init__(self, specs: Sequence[Mapping[str, Any]], *, training: bool = True, path: str = "transforms") -> None:
        self.specs: list[dict[str, Any]] = []
        self.stages: list[Transform | Mixing] = []
        self.crops = False
        self.epochs: float | None = None
        self._places: dict[Mixing, str] = {}
        foreign: list[Any] = []
        for i, spec in enumerate(specs):
            where, name, options = _read(spec, f"{path}[{i}]")
            self.specs.append({"name": name, **options})
            if name not in _OWN:
                _check_place(name, where)
                foreign.append(_foreign(name, options, where))
                if not training:
                    _check_fixed(foreign[-1], where)
                    self.crops |= name == "CenterCrop"
                continue
            self._flush(foreign, path)
            own = _own(name, options, where)
            if not (training or isinstance(own, ContrastStretch) or (isinstance(own, Resize) and not own.is_random)):
                raise DensekitError(f"{where}: {name} {_NOT_IN_EVALUATION}")
            self.stages.append(own)
            if isinstance(own, Mixing):
                self._places[own] = where
        self._flush(foreign, path)

    def __call__(self, sample: Sample, random: np.random.Generator, pool: Pool | None = None) -> Sample:
        """Transform a sample.

        Args:
            sample: image with boxes or mask; arrays are not changed in place. Boxes are in the pixels of
                ``original_size``, also where the image was decoded at the fraction that ``reduction`` gave.
            random: the generator of this (seed, epoch, index).
            pool: the images of the data set, which some transforms mix into the sample.

        Returns:
            A sample with a contiguous image of the same dtype; boxes cut at its edge, those that were emptied (a side
            under 1 px) dropped with their labels.
        """
        sample = self._through(len(self.stages), sample, random, pool)
        mask = None if sample.mask is None else np.ascontiguousarray(sample.mask)
        return dataclasses.replace(sample, image=np.ascontiguousarray(sample.image), mask=mask)

    def _through(self, stop: int, sample: Sample, random: np.random.Generator, pool: Pool | None) -> Sample:
        """A sample after the first ``stop`` stages."""
        for i, stage in enumerate(self.stages[:stop]):
            if isinstance(stage, Mixing):
                sample = self._mixed(i, stage, sample, random, pool)
            elif i == 0 and isinstance(stage, Resize):
                sample = stage(sample, random, sample.original_size)
            else:
                sample = stage(sample, random)
        return sample

    def _mixed(
        self, place: int, stage: Mixing, sample: Sample, random: np.random.Generator, pool: Pool | None
    ) -> Sample:
        """A sample mixed with others that have been through the stages before."""
        if pool is None:
            name = type(stage).__name__
            raise DensekitError(
                f"{self._places[stage]}: {name} mixes images of the data set, which gives none; remove it"
            )
        over = self.epochs is not None and pool.epoch >= stage.until * self.epochs
        if over or random.random() >= stage.p:
            return sample

        def draw() -> Sample:
            return self._through(place, pool.read(int(random.integers(pool.count))), random, pool)

        return stage(sample, random, Others(draw, pool.classes))

    def recoloured(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An image [H, W, C] after the transforms of colour of an evaluation's pipeline alone, at its own size."""
        sample = Sample(image, id="", original_size=(image.shape[0], image.shape[1]), seed=0)
        for stage in self.stages:
            if isinstance(stage, Albumentations | ContrastStretch):
                sample = stage(sample, np.random.default_rng(0))
        return np.ascontiguousarray(sample.image)

    def resized(self, sample: Sample) -> Sample:
        """A sample after the transforms of size of an evaluation's pipeline alone; see ``recoloured``."""
        for stage in self.stages:
            if isinstance(stage, Resize):
                sample = stage(sample, np.random.default_rng(0))
        return dataclasses.replace(sample, image=np.ascontiguousarray(sample.image))

    def moving(self) -> Pipeline:
        """What of it moves boxes, for samples of which the pixels don't matter; nothing is pasted by masks."""
        twin = copy.copy(self)
        stages = (stage.moving() if isinstance(stage, Albumentations) else stage for stage in self.stages)
        twin.stages = [stage for stage in stages if _moves(stage)]
        return twin

    def reduction(self, size: tuple[int, int]) -> int:
        """1, 2, 4 or 8: an image of ``size`` may be decoded at that fraction, since it is shrunk first anyway."""
        if not self.stages or not isinstance(self.stages[0], Resize):
            return 1
        target = self.stages[0].largest(size)
        fits = [r for r in (8, 4, 2) if -(-size[0] // r) >= target[0] and -(-size[1] // r) >= target[1]]
        return fits[0] if fits else 1

    def sizes(self, sizes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """[n, 2] (height, width) of images -> theirs after the transforms of an evaluation."""
        found = np.array(sizes, np.int64).reshape(-1, 2)
        for stage in self.stages:
            if isinstance(stage, Resize):
                found = np.array([stage.largest((h, w)) for h, w in found.tolist()], np.int64).reshape(-1, 2)
        return found

    def in_eight_bits(self, channels: int = 3) -> list[str]:
        """Names of its transforms that leave 256 values at most of an image of more than 8 bits."""
        foreign = [t for stage in self.stages if isinstance(stage, Albumentations) for t in stage.transforms]
        return in_eight_bits(foreign, channels)

    def check_channels(self, channels: int) -> None:
        """Refuse a transform that can't take images of so many channels, before an epoch comes to it.

        Raises:
            DensekitError: names it, and why.
        """
        for stage in self.stages:
            if isinstance(stage, Albumentations):
                stage.check_channels(channels)

    @property
    def mixes(self) -> list[str]:
        """Names of its transforms that mix images."""
        return [type(stage).__name__ for stage in self._places]

    @property
    def pastes_masks(self) -> bool:
        """Whether it needs the masks of objects, of data with boxes."""
        return any(stage.pastes_masks for stage in self._places)

    def most_objects(self, most: int) -> int:
        """The most objects of a sample after the transforms, where no image has more than ``most``."""
        for stage in self._places:
            most = stage.most_objects(most)
        return most

    def check_data(self, task: Task, classes: Classes) -> None:
        """Refuse a transform that can't mix the images of such a data set.

        Raises:
            DensekitError: names it, and why.
        """
        for stage, where in self._places.items():
            stage.check(task, classes, where)

    def _flush(self, foreign: list[Any], path: str) -> None:
        if foreign:
            self.stages.append(Albumentations(list(foreign), path))
            foreign.clear()


def _moves(stage: Transform | Mixing) -> bool:
    if isinstance(stage, Albumentations):
        return stage.moves
    return not (isinstance(stage, ContrastStretch) or (isinstance(stage, Mixing) and stage.pastes_masks))


_NEEDS_MORE = "has no place in a pipeline: it needs other images, texts or volumes than the sample's own image"
_NOT_IN_EVALUATION = "cannot be undone on the predictions; evaluation takes Resize to one size, and fixed colours"


def _read(spec: Mapping[str, Any], where: str) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise DensekitError(f"{where}: a transform is a mapping with a name, such as {{name: HorizontalFlip}}")
    return where, spec["name"], {str(k): v for k, v in spec.items() if k != "name"}


def _check_place(name: str, where: str) -> None:
    if name in _REFUSED:
        raise DensekitError(f"{where}: {name} has no place in a pipeline: {_REFUSED[name]}; remove it")


def _check_fixed(transform: Any, where: str) -> None:
    """Refuse, for evaluation, what moves pixels and what treats an image in another way each time."""
    import albumentations

    name = type(transform).__name__
    if not isinstance(transform, albumentations.ImageOnlyTransform | albumentations.CenterCrop):
        raise DensekitError(f"{where}: {name} {_NOT_IN_EVALUATION}")
    if transform.p != 1:
        raise DensekitError(f"{where}.p: {name} would change one image and not the next (p {transform.p}); set p: 1")
    if isinstance(transform, albumentations.CenterCrop):
        return
    random = np.random.default_rng(0)  # a slope with some noise: flat and pure noise look alike after many transforms
    image = (np.linspace(20, 180, 64)[:, None, None] + random.normal(0, 8, (64, 64, 3))).astype(np.uint8)
    sample, stage = Sample(image, id="a test", original_size=(64, 64), seed=0), Albumentations([transform], where)
    first, *others = (stage(sample, np.random.default_rng(seed)).image for seed in range(4))
    if not all(np.array_equal(first, other) for other in others):
        raise DensekitError(
            f"{where}: {name} draws its numbers anew for each image; evaluation sees an image in one way: "
            f"give each range one value twice"
        )


def _own(name: str, options: dict[str, Any], where: str) -> Transform | Mixing:
    known = list(inspect.signature(_OWN[name]).parameters)
    _check_options(name, options, known, where)
    transform: Transform | Mixing = _built(_OWN[name], options, where)
    return transform


def _check_options(name: str, options: dict[str, Any], known: list[str], where: str) -> None:
    for key in options:
        if key not in known:
            raise DensekitError(f"{where}.{key}: {name} has no such option; {nearest(key, known)}")


def _foreign(name: str, options: dict[str, Any], where: str) -> Any:
    """An albumentations transform; masks that it pads are padded with the ignored label."""
    import albumentations

    kind = getattr(albumentations, name, None)
    bases = (albumentations.BasicTransform, albumentations.BaseCompose)
    if not (inspect.isclass(kind) and issubclass(kind, bases)) or kind in _abstract():
        raise DensekitError(f"{where}: there is no transform {name!r}; {nearest(name, [*_OWN, *_names()])}")
    parameters = inspect.signature(kind).parameters
    _check_options(name, options, list(parameters), where)
    if "fill_mask" in parameters and parameters["fill_mask"].default is not None:
        options.setdefault("fill_mask", IGNORE)
    if _needs_more(kind):
        raise DensekitError(f"{where}: {name} {_NEEDS_MORE}; remove it")
    if issubclass(kind, albumentations.BaseCompose):
        if not options.get("transforms"):
            raise DensekitError(
                f"{where}.transforms: {name} needs a list of at least one transform; give it, or leave it"
            )
        inner = [_read(s, f"{where}.transforms[{i}]") for i, s in enumerate(options.get("transforms", ()))]
        options["transforms"] = [_inner(*entry) for entry in inner]
    return _built(kind, options, where)


def _needs_more(kind: Any) -> bool:
    """Whether a transform takes more than an image with its boxes and masks."""
    import albumentations

    return "metadata_key" in inspect.signature(kind).parameters or issubclass(kind, albumentations.Transform3D)


def _inner(where: str, name: str, options: dict[str, Any]) -> Any:
    _check_place(name, where)
    return _foreign(name, options, where)


def transform_options() -> dict[str, dict[str, inspect.Parameter]]:
    """The options of every transform that a training config can name, our own first; ``p`` is a probability."""
    import albumentations

    composed = [n for n, k in vars(albumentations).items() if inspect.isclass(k) and _composes(k)]
    found = {name: dict(inspect.signature(kind, eval_str=True).parameters) for name, kind in _OWN.items()}
    for name in sorted({*_names(), *composed} - {*_OWN, *_REFUSED}):
        kind = getattr(albumentations, name)
        parameters = dict(inspect.signature(kind).parameters)
        if not _needs_more(kind):
            if (fill := parameters.get("fill_mask")) is not None and fill.default is not None:
                parameters["fill_mask"] = fill.replace(default=IGNORE)
            found[name] = parameters
    return found


def _composes(kind: type) -> bool:
    import albumentations as a

    return issubclass(kind, a.BaseCompose) and kind not in (a.BaseCompose, a.Compose, a.ReplayCompose)


def _abstract() -> tuple[Any, ...]:
    import albumentations as a

    return a.BasicTransform, a.DualTransform, a.ImageOnlyTransform, a.Transform3D, a.BaseCompose


def _names() -> list[str]:
    import albumentations

    kinds = {n: getattr(albumentations, n) for n in dir(albumentations) if not n.startswith("_")}
    base = albumentations.BasicTransform
    return [n for n, k in kinds.items() if inspect.isclass(k) and issubclass(k, base) and k not in _abstract()]


def _built(kind: Callable[..., Any], options: dict[str, Any], where: str) -> Any:
    """Build a transform; its warnings are errors too: of a wrong name albumentations only warns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return kind(**options)
    except pydantic.ValidationError as error:
        raise DensekitError(_invalid(error, where)) from None
    except (UserWarning, ValueError, TypeError, AttributeError, KeyError) as error:
        if isinstance(error.__cause__, pydantic.ValidationError):
            raise DensekitError(_invalid(error.__cause__, where)) from None
        reason = plain_words(str(error).splitlines()[0]) if str(error) else "not valid"
        raise DensekitError(f"{where}: {reason}; correct its options") from None


def _invalid(error: pydantic.ValidationError, where: str) -> str:
    first = error.errors(include_url=False)[0]
    # Behind the option's name stand positions in it, and names of a union's members.
    key = ".".join(str(k) for i, k in enumerate(first["loc"]) if i == 0 or isinstance(k, int))
    if first["type"].startswith("missing"):
        return f"{where}.{key} must be given; correct its options"
    value = f", not {first['input']!r}" if key else ""
    return f"{where}{'.' if key else ''}{key}: {plain_words(first['msg'])}{value}; correct its options"
