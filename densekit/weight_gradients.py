"""Linear layers and convolutions whose weights learn faster on the CPU; in all else they are torch's own.

Letters: B images, C channels, H height, W width, O output channels, R rows, k, l sides of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


MOST_PIXELS, LEAST_PATCH = 2048, 1024
"""Pixels of all outputs up to which, numbers in a patch of the input from which on the product is the faster way."""


class Conv2d(nn.Conv2d):
    """A convolution whose weight learns by one product of matrices where the maps are small and the weight is large.

    In mixed precision on the CPU oneDNN's gradient of such a weight (the 3x3 of a ResNet's last stages) takes up to
    five times as long as copying the input's patches and multiplying them with the gradient of the output. Elsewhere,
    and in all else, it is torch's own convolution.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (_learns_mixed_on_cpu(input, weight) and self._multiplies_faster(input)):
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


def use_own_convolutions(module: nn.Module) -> None:
    """Turn torch's convolutions in a module of another library into ``Conv2d``: same parameters, options and keys."""
    for part in module.modules():
        if type(part) is nn.Conv2d:
            part.__class__ = Conv2d  # it adds no state


def two_sides(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    """A convolution's padding in pixels, one number a side."""
    assert not isinstance(padding, str), padding
    return padding
