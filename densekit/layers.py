"""The few modules that backbones and heads share: norms, convolution + norm + ReLU, initialisation.

Letters: B images, C channels, H height, W width, O output channels.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.ops import winograd
from densekit.ops.kept import OfTensors
from densekit.precision import convolves_packed
from densekit.weight_gradients import Conv2d, two_sides

Norm = Literal["batch", "frozen", "group", "sync"]
"""Kinds of normalisation: batch statistics, fixed statistics, groups of channels, batch statistics over all ranks."""

NormOption = Literal["none", "batch", "frozen", "group", "sync"]
"""Likewise as an option of a config, where leaving it out has a name."""


def chosen_norm(option: NormOption) -> Norm | None:
    """The norm that an option names; None for ``none``."""
    return None if option == "none" else option


class FrozenBatchNorm2d(nn.Module):
    """Batch norm as a fixed scale and shift: statistics and affine parameters are buffers, nothing is learned.

    The keys are those of ``torchvision.ops.FrozenBatchNorm2d``, so a batch norm's state dict loads too.

    Args:
        channels: C.
        eps: added to the variance; torchvision's COCO_V1 detectors were trained with 0.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self._kept = OfTensors()

    def affine(self) -> tuple[Tensor, Tensor]:
        """The scale [C] and shift [C] that this norm applies; computed when the buffers have changed."""
        return self._kept((self.weight, self.bias, self.running_mean, self.running_var), self._affine)

    def _affine(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift [B, C, H, W] in the input's dtype, computed in float32."""
        # Not torch.nn.functional's: that of torch 2.11 refuses an eps of 0.
        mean, variance, cudnn = self.running_mean, self.running_var, torch.backends.cudnn.enabled
        return torch.batch_norm(x, self.weight, self.bias, mean, variance, False, 0.0, self.eps, cudnn)

    def extra_repr(self) -> str:
        """Show channels and eps when the module is printed."""
        return f"{self.weight.shape[0]}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # a batch norm's counter has no meaning here
        super()._load_from_state_dict(state_dict, prefix, *args)


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm over the images of all ranks; unlike torch's own it also works on the CPU (gloo).

    Without a process group, with one rank, and in evaluation it is a plain batch norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        if x.is_cuda or not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(x)
        return self._over_ranks(x)

    def _over_ranks(self, x: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce  # not in every build of torch

        values = x.float()
        count = values.new_full((1,), x.numel() / x.shape[1])
        sums = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count])
        sums = cast(Tensor, all_reduce(sums))  # type: ignore[no-untyped-call]
        total, squares, count = torch.split(sums, [x.shape[1], x.shape[1], 1])
        mean = total / count
        variance = squares / count - mean.square()
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Build the norm for C channels.

    ``group`` uses 32 groups (Wu and He 2018, section 4.1), fewer where that would leave a group one channel or would
    not divide C: a group of one channel at one pixel would always give zero.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "frozen":
        return FrozenBatchNorm2d(channels)
    if norm == "sync":
        return SyncBatchNorm2d(channels)
    most = max(1, min(32, channels // 2))
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


LAYOUTS = 8
"""Layouts of its weight that a packed convolution keeps, the newest."""


class PackedConv2d(nn.Module):
    """A convolution for inference alone, made once from a learned one: norm folded in, weights cast and laid out.

    The sum with a shortcut and the ReLU are part of it. On the CPU they cost no pass of their own: oneDNN adds and cuts
    off while it writes the result. Not to be saved or trained: the learned module is the model's.

    Args:
        conv: with zero padding in pixels.
        norm: what follows; None where nothing does.
        dtype: of the weights, the arithmetic and the output.
        relu: whether a ReLU follows always.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None, dtype: torch.dtype, *, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.place = (list(two_sides(conv.padding)), list(conv.stride), list(conv.dilation), conv.groups)
        weight, bias = (conv.weight, conv.bias) if norm is None else fold_norm(conv, norm)
        weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        # The operators that torch's own compiler puts in the place of convolutions on the CPU.
        self.fuses = weight.device.type == "cpu" and convolves_packed(dtype)
        self.layouts: dict[torch.Size, Tensor] = {}
        same = conv.kernel_size == (3, 3) and self.place == ([1, 1], [1, 1], [1, 1], 1)
        self.saves_products = self.fuses and same and dtype == torch.float32
        self.turned: Tensor | None = None

    def forward(self, x: Tensor, *, relu: bool = False, add: Tensor | None = None, spare: bool = False) -> Tensor:
        """[B, C, H, W] -> [B, O, H / stride, W / stride] in the packed dtype: convolution, + ``add``, ReLU.

        ``spare`` says that nobody else needs ``add``: the result may be written over it.
        """
        x, relu = x.to(self.weight.dtype), relu or self.relu
        if not self.fuses:
            y = F.conv2d(x, self.weight, self.bias, self.place[1], self.place[0], self.place[2], self.place[3])
            y = y if add is None else y.add_(add)
            return F.relu_(y) if relu else y
        if self.saves_products and winograd.pays(x, self.weight):
            return self._by_points(x, relu, add)
        run, after = torch.ops.mkldnn._convolution_pointwise, "relu" if relu else None
        if add is None:
            return cast(Tensor, run(x, self._laid_out(x), self.bias, *self.place, after or "none", [], ""))
        fused: tuple[Any, ...] = ("add", 1.0, after, [], None)
        add = add.to(self.weight.dtype)
        if spare and add.is_contiguous(memory_format=torch.channels_last):
            run = torch.ops.mkldnn._convolution_pointwise_  # one large map less to read and to write
            return cast(Tensor, run(add, x, self._laid_out(x), self.bias, *self.place, *fused))
        return cast(Tensor, run(x, add, self._laid_out(x), self.bias, *self.place, *fused))

    def _by_points(self, x: Tensor, relu: bool, add: Tensor | None) -> Tensor:
        """The same with a quarter of the products, see ``ops/winograd.py``."""
        if self.turned is None:
            self.turned = winograd.turn_weight(self.weight)
        y = winograd.convolve(x, self.turned, self.bias, relu=relu and add is None)
        if add is None:
            return y
        y += add
        return F.relu_(y) if relu else y

    def _laid_out(self, x: Tensor) -> Tensor:
        """The weight as oneDNN wants it for an input of this shape: with another shape's it can be 300 times slower."""
        laid_out = self.layouts.get(x.shape)
        if laid_out is None:
            laid_out = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.place, list(x.shape))
            for oldest in list(self.layouts)[: max(0, len(self.layouts) + 1 - LAYOUTS)]:
                self.layouts.pop(oldest, None)  # another thread may have taken it out
            self.layouts[x.shape] = laid_out
        return laid_out


def foldable(norm: nn.Module) -> bool:
    """Whether a norm is a fixed scale and shift in evaluation, which a convolution before it can take over."""
    return isinstance(norm, FrozenBatchNorm2d) or (
        isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and norm.track_running_stats
    )


def conv_norm(
    conv: nn.Module,
    norm: nn.Module,
    x: Tensor,
    *,
    relu: bool = False,
    add: Tensor | None = None,
    spare: bool = False,
) -> Tensor:
    """``norm(conv(x))``, plus ``add`` and through a ReLU where asked; a frozen norm is folded into the weights.

    Folding costs one product with the weights and saves one pass over the output in the forward and one in the
    backward, and the copy of the output that a norm keeps for its backward. Gradients reach ``conv.weight`` unchanged.
    ``spare`` lets a packed convolution write its result over ``add``.
    """
    if isinstance(conv, PackedConv2d) and isinstance(norm, nn.Identity):
        return cast(Tensor, conv(x, relu=relu, add=add, spare=spare))
    if isinstance(norm, FrozenBatchNorm2d) and isinstance(conv, nn.Conv2d):
        y = cast(Tensor, conv._conv_forward(x, *fold_norm(conv, norm)))
    else:
        y = cast(Tensor, norm(conv(x)))
    y = y if add is None else y + add
    return F.relu_(y) if relu else y


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight [O, C / groups, k, k] and bias [O] that give what the norm makes of the convolution's output."""
    if isinstance(norm, FrozenBatchNorm2d):
        scale, shift = norm.affine()
    else:
        assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale
        shift = shift if norm.bias is None else shift + norm.bias
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], shift


class ConvNormAct(nn.Sequential):
    """Convolution, norm and ReLU: [B, C, H, W] -> [B, O, H / stride, W / stride].

    The keys are those of ``torchvision.ops.Conv2dNormActivation``: ``0`` the convolution, ``1`` the norm.

    Args:
        channels_in: C.
        channels_out: O.
        kernel: side of the kernel; padded so that stride 1 keeps the size.
        stride: step in both directions.
        dilation: spacing of the kernel's taps.
        groups: groups of channels that do not see one another.
        norm: kind of norm; None leaves it out and gives the convolution a bias.
        act: whether a ReLU follows.
        bias: whether the convolution has one beside its norm too, as in FCOS.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: Norm | None = "batch",
        act: bool = True,
        bias: bool = False,
    ) -> None:
        padding, bias = (kernel - 1) // 2 * dilation, bias or norm is None
        conv = Conv2d(channels_in, channels_out, kernel, stride, padding, dilation, groups, bias=bias)
        layers: list[nn.Module] = [conv]
        if norm is not None:
            layers.append(make_norm(norm, channels_out))
        if act:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)
        self.normed = norm is not None
        init_conv(conv)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers; a frozen norm is folded into the convolution."""
        if not self.normed:
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        x = conv_norm(self[0], self[1], x)
        return cast(Tensor, self[2](x)) if len(self) > 2 else x


def init_conv(conv: nn.Conv2d) -> None:
    """Draw weights for a convolution before a ReLU (He et al. 2015, arXiv 1502.01852, eq. 14: fan out); bias zero.

    A convolution without data (on the ``meta`` device) is left alone: drawing would fill nothing, and takes a third
    of the time in which a network is described.
    """
    if conv.weight.is_meta:
        return
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_convs(module: nn.Module) -> None:
    """Apply ``init_conv`` to every convolution below ``module``."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            init_conv(part)
