"""Convolutions that leave out what of their kernels only ever meets padding."""

from torch import Tensor, nn
from torch.nn.functional import conv2d


class TrimmedConv2d(nn.Conv2d):
    """``nn.Conv2d`` without the taps of its kernel that lie in the zero padding for every output: the same function.

    Where a network made for large images sees small ones, its last convolutions are all padding: on an image of 1x1 a
    3x3 kernel multiplies by its middle alone, and eight ninths of the work are products with zeros. A ResNet-18 with
    ImageNet's stem on 32x32 images gains by it (benchmarks/performance.py).

    Output and gradients equal those of ``nn.Conv2d`` to rounding; a tap left out has gradient zero, as before.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002 - torch's name
        trimmed, paddings = weight, list[int]()
        if not isinstance(self.padding, str) and self.padding_mode == "zeros" and self.dilation == (1, 1):
            for dim in (-2, -1):
                size, kernel, stride = input.shape[dim], self.kernel_size[dim], self.stride[dim]
                padding = self.padding[dim]
                outputs = (size + 2 * padding - kernel) // stride + 1
                # Output o holds tap i against the pixel o · stride + i - padding.
                first, last = max(0, padding - (outputs - 1) * stride), min(kernel - 1, size - 1 + padding)
                padding, kernel = padding - first, last - first + 1
                # Otherwise no tap meets a pixel, or both sides would need paddings of their own.
                if kernel > 0 and (size + 2 * padding - kernel) // stride + 1 == outputs:
                    trimmed = trimmed.narrow(dim, first, kernel)
                    paddings.append(padding)
        output: Tensor
        if len(paddings) == 2:
            output = conv2d(input, trimmed, bias, self.stride, tuple(paddings), groups=self.groups)
        else:
            output = super()._conv_forward(input, weight, bias)
        return output
