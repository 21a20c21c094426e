"""Linear layers and convolutions whose weights learn faster, or safely, on the CPU; in all else they are torch's own.

Letters: B images, C channels, H height, W width, O output channels, R rows, k, l sides of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.ops import winograd


class Linear(nn.Linear):
    """A linear layer for many rows, such as pooled regions: [R, C] -> [R, O].

    In mixed precision on the CPU the gradient of its weight is a product of two matrices that lie row by row: oneDNN
    takes 1.7 times as long where one of them is read across its rows, as autograd would have it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[R, C] -> [R, O]."""
        if not _learns_mixed_on_cpu(input, self.weight):
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu")
        return cast(Tensor, _Product.apply(input.to(dtype), self.weight.to(dtype), self.bias.to(dtype)))


class _Product(torch.autograd.Function):
    """x w^T + b for x [R, C], w [O, C] and b [O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        before = gradient @ weight if ctx.needs_input_grad[0] else None
        return before, _turned(gradient) @ x, gradient.sum(0)


def _turned(x: Tensor) -> Tensor:
    """[R, O] -> [O, R], row by row.

    Torch copies a turned matrix block by block, on one core; what has three sides on all cores, but not in blocks. That
    is twice as fast on four cores, and up to 3.5 times slower on one.
    """
    return x.t()[None].contiguous()[0] if torch.get_num_threads() >= 4 else x.t().contiguous()


def _channels_first(x: Tensor) -> Tensor:
    """[B, C, H, W] pixel by pixel -> the same channel by channel.

    On few cores image by image, as above: of 64 channels at 256 x 256 pixels, on two, in half the time.
    """
    if torch.get_num_threads() >= 4 or x.is_contiguous():
        return x.contiguous()
    first = torch.empty_like(x, memory_format=torch.contiguous_format)
    for image, pixels in zip(first.flatten(2), x.permute(0, 2, 3, 1).flatten(1, 2)):
        image.copy_(pixels.t())
    return first


MOST_PIXELS, LEAST_PATCH = 2048, 1024
"""Pixels of all outputs up to which, numbers in a patch of the input from which on the product is the faster way."""


class Conv2d(nn.Conv2d):
    """A convolution whose weight learns by one product of matrices where the maps are small and the weight is large.

    In mixed precision on the CPU oneDNN's gradient of such a weight (the 3x3 of a ResNet's last stages) takes up to
    five times as long as copying the input's patches and multiplying them with the gradient of the output. In float32
    it learns as ``conv2d`` says. Elsewhere, and in all else, it is torch's own convolution.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _learns_mixed_on_cpu(input, weight):
            padding = (0, 0) if self.padding == "valid" else self.padding
            if self.padding_mode != "zeros" or isinstance(padding, str):
                return cast(Tensor, super()._conv_forward(input, weight, bias))
            return conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)
        if not self._multiplies_faster(input):
            return cast(Tensor, super()._conv_forward(input, weight, bias))
        dtype = torch.get_autocast_dtype("cpu")
        bias = None if bias is None else bias.to(dtype)
        run = _Patches.apply
        return cast(Tensor, run(input.to(dtype), weight.to(dtype), bias, self.stride, two_sides(self.padding)))

    def _multiplies_faster(self, x: Tensor) -> bool:
        if self.groups != 1 or self.dilation != (1, 1) or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        height, width = _output_size(x, self.kernel_size, self.stride, two_sides(self.padding))
        patch = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        return x.shape[0] * height * width <= MOST_PIXELS and patch >= LEAST_PATCH


class _Patches(torch.autograd.Function):
    """Convolution of x [B, C, H, W] by w [O, C, k, l] plus b [O] or None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        before = None
        if ctx.needs_input_grad[0]:
            place = (list(ctx.stride), list(ctx.padding), [1, 1], False, [0, 0], 1)
            run = torch.ops.aten.convolution_backward
            before = run(gradient, x, weight, None, *place, [True, False, False])[0]
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
        product = _turned(rows) @ _patches(x, weight.shape[2:], ctx.stride, ctx.padding)
        learned = product.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)
        return before, learned, rows.sum(0) if ctx.needs_input_grad[2] else None, None, None


def _patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """What each output pixel sees: [B, C, H, W] -> [B H' W', k l C]; in each row pixel after pixel, as they lie."""
    height, width = _output_size(x, kernel, stride, padding)
    x = x.permute(0, 2, 3, 1)
    if any(padding):  # else it would be copied for nothing
        x = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    x = x.contiguous()
    image, row, pixel, channel = x.stride()
    shape = (x.shape[0], height, width, *kernel, x.shape[3])
    seen = x.as_strided(shape, (image, row * stride[0], pixel * stride[1], row, pixel, channel))
    return seen.reshape(x.shape[0] * height * width, -1)


def _output_size(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> tuple[int, int]:
    height, width = ((x.shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
    return height, width


def _learns_mixed_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether a weight gets a gradient in mixed precision on the CPU, step by step (a compiler takes its own ways)."""
    learns = torch.is_grad_enabled() and weight.requires_grad and x.device.type == "cpu"
    return learns and torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


LEAST_TURNED = 32
"""Channels on both sides from which on a weight of 3x3 and more learns faster from maps that are turned."""


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Torch's convolution, learning by the faster way in float32 on the CPU with channels last.

    3x3 kernels between many channels take a quarter of the products (``ops/winograd.py``). Others hand oneDNN turned
    copies for the gradient of their weight: with channels last it takes up to five times as long for it. 1x1 kernels
    with stride that see few channels get the pixels that they look at, see ``_overruns``.

    Args:
        x: [B, C, H, W].
        weight: [O, C / groups, k, l].
        bias: [O].
        stride: in both directions.
        padding: pixels of zeros on both sides, in both directions.
        dilation: spacing of the kernel's taps.
        groups: groups of channels that do not see one another.

    Returns:
        [B, O, H', W'].
    """
    if groups == 1 and _overruns(x, weight, stride, padding):
        return F.conv2d(x[..., :: stride[0], :: stride[1]], weight, bias)
    if _learns_float32_on_cpu(x, weight) and groups == 1 and tuple(dilation) == (1, 1):
        three = tuple(weight.shape[2:]) == (3, 3) and tuple(stride) == (1, 1) and tuple(padding) == (1, 1)
        if three and winograd.pays(x, weight, learning=True):
            return cast(Tensor, _Points.apply(x, weight, bias))
        if min(weight.shape[:2]) >= LEAST_TURNED and weight[0, 0].numel() > 1:
            return cast(Tensor, _Turned.apply(x, weight, bias, stride, padding, False))
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


BLOCK = 16
"""Channels that oneDNN computes side by side with AVX-512; 8 with AVX2."""


def _overruns(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> bool:
    """Whether oneDNN (3.12, in torch 2.15) may damage memory when it computes the gradient of a weight.

    For a 1x1 kernel with stride, in float32 with channels last, it copies the pixels that the kernel looks at into room
    for C channels each, but steps through that room by whole blocks of channels. With fewer it writes past the end: the
    process dies, hangs, or gets a wrong gradient.
    """
    passes_over = tuple(weight.shape[2:]) == (1, 1) and tuple(stride) != (1, 1) and not any(padding)
    learns = torch.is_grad_enabled() and weight.requires_grad and x.device.type == "cpu"
    return passes_over and learns and weight.shape[1] < BLOCK


def _learns_float32_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether a weight gets a gradient in float32 on the CPU, channels last: the other layout is the plain path."""
    learns = torch.is_grad_enabled() and weight.requires_grad and x.device.type == "cpu" and x.dtype == torch.float32
    eager = not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    return learns and eager and x.is_contiguous(memory_format=torch.channels_last)


class _Points(torch.autograd.Function):
    """3x3 convolution of x [B, C, H, W] by w [O, C, 3, 3] plus b [O] or None, see ``ops/winograd.py``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return winograd.convolution(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        turned = winograd.turn_weight(weight)
        before, learned = winograd.gradients(x, turned, gradient, of_input=ctx.needs_input_grad[0])
        return before, learned, gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that learns as ``conv_transpose2d`` says; in all else torch's own."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W']."""
        plain = self.groups == 1 and set(self.dilation) == {1} and not any(self.output_padding)
        if output_size is not None or not plain:
            return super().forward(input, output_size)
        return conv_transpose2d(input, self.weight, self.bias, self.stride, two_sides(self.padding))


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """Torch's transposed convolution, learning by the faster way in float32 on the CPU with channels last.

    Args:
        x: [B, C, H, W].
        weight: [C, O, k, l].
        bias: [O].
        stride: in both directions.
        padding: pixels that the output loses on both sides, in both directions.

    Returns:
        [B, O, H', W'].
    """
    if min(weight.shape[:2]) >= LEAST_TURNED and _learns_float32_on_cpu(x, weight):
        return cast(Tensor, _Turned.apply(x, weight, bias, stride, padding, True))
    return F.conv_transpose2d(x, weight, bias, stride, padding)


class _Turned(torch.autograd.Function):
    """Convolution of x [B, C, H, W] by w [O, C, k, l], transposed by w [C, O, k, l], plus b [O] or None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.place = (list(stride), list(padding), [1, 1], transposed, [0, 0], 1)
        return cast(Tensor, torch.ops.aten.convolution(x, weight, bias, *ctx.place))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None, None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        run, before = torch.ops.aten.convolution_backward, None
        if ctx.needs_input_grad[0]:
            before = run(gradient, x, weight, None, *ctx.place, [True, False, False])[0]
        turned = _channels_first(gradient), _channels_first(x), weight.contiguous()
        learned = run(*turned, None, *ctx.place, [False, True, False])[1]
        learned = learned.contiguous(memory_format=torch.channels_last)
        return before, learned, gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None, None, None


def use_own_convolutions(module: nn.Module) -> None:
    """Turn torch's convolutions in a module of another library into ``Conv2d``: same parameters, options and keys."""
    for part in module.modules():
        if type(part) is nn.Conv2d:
            part.__class__ = Conv2d  # it adds no state


def two_sides(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    """A convolution's padding in pixels, one number a side."""
    assert not isinstance(padding, str), padding
    return padding
