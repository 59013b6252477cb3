"""Torch modules whose products are done by an array tester."""

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from hil.instruments.tester import ArrayTester
from hil.kernels import F32
from hil.pairs import UNIT, DifferentialPairs
from hil.products import Products, products
from hil.protocols.errors import InputError
from hil.writing import Writer, blind

EXTRA_STATE = "_extra_state"
"""Torch's name for what a module keeps besides its parameters."""

FORWARD_RANGE, BACKWARD_RANGE = 12.0, 4.0
"""Largest output in weight units that the converter has to cover, per unit of input and per unit of delta. CHOSEN."""

INITIAL_SPREAD = 0.1
"""Standard deviation of the initial weights aimed at, in device units. Programming noise makes it 0.15 on the devices,
as in the paper: RECALLED (both devices at 1.6 +- 0.83 uS; 0.83 sqrt(2) / 8 = 0.147).
"""


class AnalogWeight(nn.Parameter):
    """Handle of a weight matrix on devices: shape (rows, columns), inputs by outputs, the bias being the last row.

    It holds no values, they are on the array. `factors` collects what backpropagation gives for it until the optimizer
    takes it: pairs of x (batch, rows - 1), the input 1 of the bias being left out, and delta (batch, columns), both
    float32 and contiguous. The gradient is the sum of [x, 1]^T delta.
    """

    pairs: DifferentialPairs
    products: Products
    factors: list[tuple[F32, F32]]

    @staticmethod
    def of(pairs: DifferentialPairs, products: Products) -> "AnalogWeight":
        """The handle of weights on `pairs`."""
        weight = AnalogWeight(torch.zeros(1).expand(pairs.shape))
        weight.pairs, weight.products, weight.factors = pairs, products, []
        return weight


class AnalogLinear(nn.Module):
    """y = x W + b on a tester, like `nn.Linear`; W and b lie on differential pairs, b as one more row with the input 1.

    `scale` is the weight of one device unit (8 uS). Initial weights (in_features + 1, out_features) are drawn from
    torch's generator unless given, and written by `write`: blindly, unless it is another of `hil.writing`.
    `forward_range` is the largest output in weight units per unit of input that the converter has to cover,
    `backward_range` likewise per unit of delta. On an array that does no products the layer reads its cells and
    multiplies on the host; it then reads all of them again every `reread_images` vectors, and after `eval()`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        tester: ArrayTester,
        *,
        scale: float = 1.0,
        initial_weights: Tensor | None = None,
        forward_range: float = FORWARD_RANGE,
        backward_range: float = BACKWARD_RANGE,
        reread_images: int = 10_000,
        write: Writer = blind,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        if initial_weights is None:
            initial_weights = torch.randn(in_features + 1, out_features) * INITIAL_SPREAD * scale
        if initial_weights.shape != (in_features + 1, out_features):
            shape = tuple(initial_weights.shape)
            raise InputError(f"initial weights of shape {shape}: the layer takes {(in_features + 1, out_features)}")
        pairs = DifferentialPairs(tester, in_features + 1, out_features, scale)
        differences = initial_weights.numpy().ravel() * np.float32(UNIT / scale)
        write(pairs, differences)
        self.weight = AnalogWeight.of(pairs, products(pairs, forward_range, backward_range, reread_images))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features). Raises `InputError` for another number of features."""
        if x.shape[-1:] != (self.in_features,):
            raise InputError(f"input of shape {tuple(x.shape)}: the layer takes (..., {self.in_features})")
        flat = x if x.dim() == 2 else x.reshape(-1, self.in_features)  # each call into torch takes microseconds
        result: Tensor = AnalogProduct.apply(flat, self.weight)  # type: ignore[no-untyped-call]
        return result if x.dim() == 2 else result.reshape(*x.shape[:-1], self.out_features)

    def train(self, mode: bool = True) -> Self:
        """As in torch; entering evaluation makes a host-multiplied layer read its cells again."""
        if not mode:
            self.weight.products.forget()
        return super().train(mode)

    def get_extra_state(self) -> dict[str, Any]:
        """All of the layer's state that is on the host; the devices keep the weights."""
        return {"pairs": self.weight.pairs.state(), "products": self.weight.products.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_extra_state` gave."""
        self.weight.pairs.restore(state["pairs"])
        self.weight.products.restore(state["products"])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Leave the weight out: it is a handle without values."""
        destination[prefix + EXTRA_STATE] = self.get_extra_state()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        if prefix + EXTRA_STATE in state_dict:
            self.set_extra_state(state_dict[prefix + EXTRA_STATE])
        elif strict:
            missing_keys.append(prefix + EXTRA_STATE)

    def extra_repr(self) -> str:
        """What the text form of the model shows."""
        return f"{self.in_features}, {self.out_features}, chip={self.weight.pairs.tester.identify().chip}"


class AnalogProduct(torch.autograd.Function):
    """The product of `AnalogLinear` for torch's graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: AnalogWeight) -> Tensor:
        # A copy: x may be overwritten before the optimizer has taken the factors.
        ctx.x, ctx.weight = np.array(x.detach().numpy(), np.float32, order="C"), weight
        return torch.from_numpy(weight.products.forward(ctx.x))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, None]:
        delta = np.ascontiguousarray(gradients[0].numpy(), np.float32)
        if ctx.weight.requires_grad:
            ctx.weight.factors.append((ctx.x, delta))
        if not ctx.needs_input_grad[0]:
            return None, None
        return torch.from_numpy(ctx.weight.products.backward(delta)), None
