"""Any timm network that gives feature maps, as ``timm/<name>``: levels are read from the network, never typed in.

Letters: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from densekit.errors import DensekitError, nearest
from densekit.layers import Norm, make_norm
from densekit.registry import BACKBONES
from densekit.types import Level


class TimmBackbone(nn.Module):
    """A timm feature network as a backbone.

    A map of stride 2^n is level ``c<n>``; where the stride does not grow (a dilated network, a vision transformer) the
    number grows all the same, so that ``c4`` names the same stage with and without dilation.

    Args:
        net: made by ``timm.create_model(..., features_only=True)``.
        name: registered name, for messages and weights.
        in_channels: channels of the images.
        size: the only (height, width) that the network takes; None where it takes any.
        frozen_stages: how many of the first levels come from parts that do not learn.

    Raises:
        DensekitError: a stride is not a power of two, or more stages frozen than there are.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        in_channels: int = 3,
        size: tuple[int, int] | None = None,
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.in_channels = in_channels
        self.size = size
        info = cast(Any, net).feature_info
        self.levels = _levels(name, info.channels(), info.reduction())
        self.channels_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")
        if not 0 <= frozen_stages <= len(self.levels):
            raise DensekitError(
                f"frozen_stages: {name} takes 0 (none) to {len(self.levels)} (all), not {frozen_stages}"
            )
        self.frozen: list[str] = []
        if frozen_stages:
            self._freeze(frozen_stages)
        self.train(self.training)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] normalised float images -> one map a level, finest first.

        Raises:
            DensekitError: images of another number of channels, or of a size that the network does not take.
        """
        if images.shape[1] != self.in_channels:
            raise DensekitError(
                f"backbone {self.name!r} takes images of {self.in_channels} channels, these have {images.shape[1]}; "
                f"convert the images, or build it with in_channels={images.shape[1]}"
            )
        size = (images.shape[2], images.shape[3])
        if self.size is not None and size != self.size:
            raise DensekitError(
                f"backbone {self.name!r} takes images of {self.size[0]} x {self.size[1]} only, these are {size[0]} x "
                f"{size[1]}; resize them in the transforms, or set image_size, or choose a network that takes any size"
            )
        try:
            maps = self.net(images)
        except AssertionError as error:  # how timm's networks refuse a size, often without a word
            reason = f" ({error})" if str(error) else ""
            raise DensekitError(
                f"backbone {self.name!r} does not take images of {size[0]} x {size[1]}{reason}; "
                f"resize them to sides that are multiples of 256, or choose a network that takes any size"
            ) from None
        maps = [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else list(maps)
        self._check(maps, size)
        return maps

    def _check(self, maps: Sequence[Tensor], size: tuple[int, int]) -> None:
        """Refuse networks whose maps do not cover the image, as those without padding at its borders."""
        for m, level in zip(maps, self.levels, strict=True):
            due = (-(-size[0] // level.stride), -(-size[1] // level.stride))
            if tuple(m.shape[2:]) != due:
                raise DensekitError(
                    f"backbone {self.name!r} gives a map of {m.shape[2]} x {m.shape[3]} where heads need {due[0]} x "
                    f"{due[1]} (stride {level.stride}, image {size[0]} x {size[1]}), since it does not pad its borders;"
                    f" the nearest that do are timm/xception41, timm/inception_next_tiny and timm/resnet50d"
                )

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switch to training or evaluation; frozen parts stay in evaluation, which keeps their statistics."""
        super().train(mode)
        for name in self.frozen:
            self.net.get_submodule(name).training = False
        return self

    def _freeze(self, stages: int) -> None:
        """Freeze what the first levels are computed from: the parameters that a backward from them reaches."""
        height, width = self.size or (64, 64)
        images = torch.zeros(1, self.in_channels, height, width)
        self.eval()
        with torch.enable_grad():
            reached = self(images)[stages - 1].sum()
            parameters = dict(self.net.named_parameters())
            grads = torch.autograd.grad(reached, list(parameters.values()), allow_unused=True)
        own = {name for name, grad in zip(parameters, grads) if grad is not None}
        for name in own:
            parameters[name].requires_grad_(False)
        for name, module in self.net.named_modules():
            names = [f"{name}.{n}".lstrip(".") for n, _ in module.named_parameters(recurse=False)]
            if names and all(n in own for n in names):
                self.frozen.append(name)
        super().train()


@BACKBONES.register_prefix
def timm(
    name: str,
    *,
    in_channels: int = 3,
    norm: Norm = "batch",
    output_stride: Literal[8, 16, 32] = 32,
    frozen_stages: int = 0,
    drop_path: float = 0.0,
    image_size: tuple[int, int] | None = None,
) -> TimmBackbone:
    """Build a timm network; its weights come through ``weights``, not here.

    Args:
        name: timm's name, with or without the tag of its weights.
        in_channels: channels of the images.
        norm: ``batch`` leaves the network's own norms; the others take the place of its batch norms.
        output_stride: the coarsest stride, where the network can dilate.
        frozen_stages: how many of the first levels come from parts that do not learn.
        drop_path: stochastic depth, where the network has it.
        image_size: (height, width) for networks that take one size only.

    Raises:
        DensekitError: unknown name, a network without feature maps, or an option that this network does not take.
    """
    options: dict[str, Any] = {"in_chans": in_channels}
    if output_stride != 32:
        options["output_stride"] = output_stride
    if drop_path:
        options["drop_path_rate"] = drop_path
    if image_size is not None:
        options["img_size"] = image_size
    net = _create(name, options)
    _convert_norms(net, norm, name)
    size = image_size or _only_size(net)
    built = TimmBackbone(net, name=f"timm/{name}", in_channels=in_channels, size=size, frozen_stages=frozen_stages)
    if _starts_unpadded(net):
        with torch.no_grad():  # now, and not when a run has begun
            built.eval()(torch.zeros(1, in_channels, 128, 128, device=next(net.parameters()).device))
        built.train()
    return built


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    import timm as library  # takes two seconds

    if not library.is_model(name.split(".")[0]):
        raise DensekitError(f"timm has no network {name!r}; {nearest(name, library.list_models())}")
    try:
        return cast(nn.Module, library.create_model(name, pretrained=False, features_only=True, **options))
    except TypeError as error:
        given = ", ".join(option for option in options if option in str(error)) or "an option"
        raise DensekitError(f"timm's {name!r} does not take {given} ({error}); leave it out") from None
    except (RuntimeError, ValueError, AttributeError, NotImplementedError, AssertionError) as error:
        raise DensekitError(f"timm's {name!r} does not give feature maps ({error}); choose another network") from None


def _starts_unpadded(net: nn.Module) -> bool:
    """Whether the first convolution overlaps its windows and has no padding: then maps may be smaller than is due."""
    first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    return type(first) is nn.Conv2d and first.padding == (0, 0) and first.kernel_size > first.stride


def _only_size(net: nn.Module) -> tuple[int, int] | None:
    config = getattr(net, "pretrained_cfg", None) or {}
    return (config["input_size"][1], config["input_size"][2]) if config.get("fixed_input_size") else None


def _levels(network: str, channels: Sequence[int], strides: Sequence[int]) -> tuple[Level, ...]:
    levels: list[Level] = []
    number = -1
    for count, stride in zip(channels, strides):
        if stride & (stride - 1):
            raise DensekitError(
                f"{network} gives a map of stride {stride}, heads need powers of two; choose another network"
            )
        number = max(number + 1, stride.bit_length() - 1)
        levels.append(Level(f"c{number}", count, stride))
    return tuple(levels)


def _convert_norms(net: nn.Module, norm: Norm, name: str) -> None:
    if norm == "batch":
        return
    if norm == "frozen":
        from timm.layers import freeze_batch_norm_2d

        freeze_batch_norm_2d(net)
        return
    for parent in list(net.modules()):
        for key, child in list(parent.named_children()):
            if not isinstance(child, nn.BatchNorm2d):
                continue
            if type(child) is not nn.BatchNorm2d:
                raise DensekitError(
                    f"norm: timm's {name!r} joins norm and activation in {type(child).__name__}, which {norm!r} can't "
                    f"replace; use batch or frozen"
                )
            new = make_norm(norm, child.num_features)
            if hasattr(new, "eps"):
                new.eps = child.eps  # type: ignore[assignment]  # nn.Module types its attributes
            setattr(parent, key, new)
