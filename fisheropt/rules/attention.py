"""nn.MultiheadAttention, which multiplies by four weights without calling a child."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.func import vjp
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from fisheropt.persample import Dense, Outer, PerSample
from fisheropt.rules.registry import Rule, rule

_INPUTS = (
    "query",
    "key",
    "value",
    "key_padding_mask",
    "need_weights",
    "attn_mask",
    "average_attn_weights",
    "is_causal",
)


class _Call(NamedTuple):
    """What of a call is no saved tensor."""

    places: tuple[int, ...]
    """Where query, key and value are among the saved tensors, which holds a tensor once."""
    masks: tuple[str, ...]
    masked: int
    """Where the masks begin among the saved tensors."""


@final
@rule(nn.MultiheadAttention)
class Attention(Rule):
    """Each projection has hₙ = Σₜ gₙₜ aₙₜᵀ.

    The gradients g at queries, keys and values come from running the attention between the projections once more.
    """

    in_place: ClassVar[bool] = False
    serves: ClassVar[frozenset[str] | None] = frozenset(
        {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v"}
    )
    adopts: ClassVar[tuple[str, ...]] = ("out_proj",)
    beside: ClassVar[str] = "the attention weights. Call it with need_weights=False"

    def prepare(self, module: nn.Module) -> Rule:
        return self

    def refusal(self, module: nn.Module) -> str | None:
        """Options that are not served."""
        assert isinstance(module, nn.MultiheadAttention)
        if not module.batch_first:
            return "its samples are on the second axis; build it with batch_first=True"
        if module.bias_k is not None or module.add_zero_attn:
            return "keys that no sample gave are not served; build it without add_bias_kv and add_zero_attn"
        if is_parametrized(module.out_proj):
            return "its parametrised out_proj is never called; parametrise a nn.Linear that is"
        return None

    def saved(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
        assert isinstance(module, nn.MultiheadAttention)
        given = dict(zip(_INPUTS, args, strict=False)) | kwargs
        query, key, value = (given[name] for name in _INPUTS[:3])
        if module.training and module.dropout > 0:
            raise RuntimeError(
                f"MultiheadAttention has dropout={module.dropout}, whose mask a second run cannot repeat. Write "
                f"attention.dropout = 0.0, in a nn.TransformerEncoderLayer layer.self_attn.dropout = 0.0 (its other "
                f"dropouts stay), and put nn.Dropout behind it if you like; or call .eval() on it"
            )
        if query.ndim < 3:
            raise RuntimeError(
                f"MultiheadAttention was called with a query of shape {tuple(query.shape)}, which has no axis of samples; "
                f"write attention(x.unsqueeze(0), ...) for a batch of one"
            )
        inputs: list[Tensor] = []
        for x in (query, key, value):
            if not any(x is other for other in inputs):
                inputs.append(x)
        places = tuple(next(i for i, other in enumerate(inputs) if other is x) for x in (query, key, value))
        masks = tuple(name for name in ("attn_mask", "key_padding_mask") if given.get(name) is not None)
        held = (*inputs, *_weights(module))
        return (*held, *(given[name] for name in masks)), _Call(places, masks, len(held))

    def observed(self, output: Any) -> tuple[Tensor, tuple[Any, ...]]:
        return output[0], tuple(output[1:])

    def forms(
        self, module: nn.Module, names: tuple[str, ...], saved: tuple[Tensor, ...], context: Any, grad: Tensor
    ) -> dict[str, PerSample]:
        assert isinstance(module, nn.MultiheadAttention)
        heads, held = module.num_heads, max(context.places) + 1
        *weights, weight = (w.detach() for w in saved[held : context.masked])
        inputs = tuple(saved[place].to(weight.dtype) for place in context.places)
        mask = _mask(dict(zip(context.masks, saved[context.masked :], strict=True)), heads, weight.dtype)
        grad = grad.to(weight.dtype)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

        attended, pull, *_ = vjp(attend, *_projected(weights, inputs))
        gradients = pull(grad @ weight)
        forms: dict[str, PerSample] = {
            "out_proj.weight": Outer(grad, attended.detach()),
            "out_proj.bias": Dense(grad.sum(1)),
            "in_proj_bias": Dense(torch.cat([g.sum(1) for g in gradients], 1)),
            **{f"{name}_proj_weight": Outer(g, a) for name, g, a in zip("qkv", gradients, inputs, strict=True)},
        }
        if "in_proj_weight" in names:
            forms["in_proj_weight"] = _stacked(gradients, inputs, max(context.places) == 0)
        return {name: forms[name] for name in names}


def _weights(module: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    """Those of the projections in, the biases where there are some, and that of the projection out."""
    together = module.in_proj_weight is not None
    weights = (
        (module.in_proj_weight,) if together else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    biases = () if module.in_proj_bias is None else (module.in_proj_bias,)
    return (*weights, *biases, module.out_proj.weight)


def _projected(weights: list[Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Queries, keys and values."""
    matrices = [part for w in weights if w.ndim == 2 for part in (w.chunk(3) if len(weights) < 3 else (w,))]
    biases = weights[-1].chunk(3) if weights[-1].ndim == 1 else (None, None, None)
    return [F.linear(x, w, b) for x, w, b in zip(inputs, matrices, biases, strict=True)]


def _stacked(gradients: tuple[Tensor, ...], inputs: tuple[Tensor, ...], alike: bool) -> Outer:
    """The three projections' weights, one above the other; of different inputs, each at positions of its own."""
    if alike:
        return Outer(torch.cat(gradients, 2), inputs[0])
    width = gradients[0].shape[2]
    parts = [F.pad(g, (place * width, (2 - place) * width)) for place, g in enumerate(gradients)]
    return Outer(torch.cat(parts, 1), torch.cat(inputs, 1))


def _mask(masks: dict[str, Tensor], heads: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores, [n, heads, queries, keys] or of one where they agree; None for nothing."""
    added: Tensor | None = None
    for name, mask in masks.items():
        if mask.dtype is torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
        if name == "key_padding_mask":
            mask = mask[:, None, None]
        elif mask.ndim == 3:
            mask = mask.unflatten(0, (-1, heads))
        added = mask.to(dtype) if added is None else added + mask
    return added
