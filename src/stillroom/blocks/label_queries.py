"""A query per label: label-wise embeddings and logits by attention over any backbone's feature map."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.blocks.shapes import as_tokens
from stillroom.blocks.taps import BriefTaps, modules_by_name, tap_root


class LabelQueries(nn.Module):
    """One decoder layer whose queries, one per label, look for their label in the tokens of an image.

    Tokens are brought to width D by a linear layer and ReLU. The queries q are random, fixed, and the same for every
    image: q <- LN(q + drop(q)); q <- LN(q + drop(MHA(q, tokens, tokens))); q <- LN(q + drop(FFN(q))). Queries do not
    see each other.

    Args:
        channels: F of the tokens or maps.
        classes: number of labels C.
        width: D, a multiple of heads.
        heads: of the attention.
        hidden: width of the perceptron, with a ReLU.
        dropout: in [0, 1).

    Raises:
        ValueError: a number below 1, D is no multiple of heads, or dropout is out of range.

    Source: Yang et al. 2023, arXiv:2308.06453; the head is that of ML-Decoder, Ridnik et al. 2021, arXiv:2111.12933.

    Example:
        >>> queries = LabelQueries(16, classes=5, width=8, heads=2, hidden=32)
        >>> queries(torch.randn(3, 16, 4, 4)).shape
        torch.Size([3, 5, 8])
    """

    queries: Tensor

    def __init__(
        self,
        channels: int,
        *,
        classes: int,
        width: int = 768,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        given = {"channels": channels, "classes": classes, "width": width, "heads": heads, "hidden": hidden}
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, given {value}")
        if width % heads:
            raise ValueError(f"width must be a multiple of the {heads} heads, given {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), given {dropout}")
        self.classes, self.width = classes, width
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.ReLU())
        self.register_buffer("queries", torch.randn(classes, width))  # no parameter: they are not trained
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.perceptron = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, feature: Tensor) -> Tensor:
        """Map feature maps `(N, F, H, W)` or tokens `(N, T, F)` to label-wise embeddings `(N, C, D)`."""
        tokens = self.embed(as_tokens(feature))
        asked = self.queries.expand(len(tokens), -1, -1)
        asked = self.norms[0](asked + self.dropout(asked))
        asked = self.norms[1](asked + self.dropout(self.attention(asked, tokens, tokens, need_weights=False)[0]))
        return self.norms[2](asked + self.dropout(self.perceptron(asked)))


class LabelReadOut(nn.Module):
    """A linear map of its own per label: logit of label c = h_c . w_c + b_c.

    Args:
        classes: number of labels C.
        width: D of the label-wise embeddings.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(classes, width)))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map label-wise embeddings `(N, C, D)` to logits `(N, C)`."""
        return (embeddings * self.weight).sum(-1) + self.bias


class LabelQueryNetwork(nn.Module):
    """A backbone, a query per label, and a logit per label.

    The label-wise embeddings are what the module `queries` returns (see `Taps` and `label_queries_in`).

    Args:
        backbone: inputs -> maps `(N, F, H, W)` or tokens `(N, T, F)`.
        channels: F.
        classes: number of labels C.
        width: D of the label-wise embeddings, a multiple of heads.
        heads: of the attention.
        hidden: width of the perceptron.
        dropout: in [0, 1).

    Source: Yang et al. 2023, arXiv:2308.06453.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU())
        >>> network = LabelQueryNetwork(backbone, 16, classes=5, width=8, heads=2, hidden=32)
        >>> network(torch.randn(2, 3, 9, 9)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        *,
        classes: int,
        width: int = 768,
        heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.queries = LabelQueries(channels, classes=classes, width=width, heads=heads, hidden=hidden, dropout=dropout)
        self.head = LabelReadOut(classes, width)

    def forward(self, inputs: Any) -> Tensor:
        """Map inputs to logits `(N, C)`."""
        return self.head(self.queries(self.backbone(inputs)))


class InnerFeatures(nn.Module):
    """A network as a backbone: what one of its modules returns is the output, and what follows is not trained.

    Args:
        network: any network; not copied.
        at: dotted name of the module, inside what may surround the network (see `Taps`).
        probe: inputs to find by which parameters work towards that module; the others stand still.
    """

    def __init__(self, network: nn.Module, at: str, probe: Any) -> None:
        super().__init__()
        self.network = network
        self._call = BriefTaps(at)
        named = [parameter for parameter in network.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            found = torch.autograd.grad(self(probe).sum(), named, allow_unused=True) if named else ()
        for parameter, gradient in zip(named, found, strict=True):
            parameter.requires_grad_(gradient is not None)

    def forward(self, inputs: Any) -> Tensor:
        """Return what the module gives."""
        return self._call(self.network, inputs)[1][0]


def with_label_queries(
    network: nn.Module,
    probe: Any,
    *,
    at: str,
    classes: int,
    width: int = 768,
    heads: int = 8,
    hidden: int = 2048,
    dropout: float = 0.1,
) -> LabelQueryNetwork:
    """Copy a network and put a query per label behind one of its modules, in place of what follows there.

    Args:
        network: a classifier, trained or not.
        probe: two inputs or more, to learn the shape of the feature from.
        at: dotted name of the module whose maps `(N, F, H, W)` or tokens `(N, T, F)` are looked at: the last stage
            (`Taps.names(network)` lists all).
        classes: number of labels C.
        width: D of the label-wise embeddings, a multiple of heads.
        heads: of the attention.
        hidden: width of the perceptron.
        dropout: in [0, 1).

    Returns:
        A network inputs -> logits `(N, C)`, in training mode. Parameters that follow the module stay, unused, and do
        not train.

    Raises:
        ValueError: no module has that name, or it returns neither maps nor tokens.

    Example:
        >>> classifier = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 2))
        >>> tagger = with_label_queries(classifier, torch.randn(2, 3, 8, 8), at="1", classes=7, width=8, heads=2)
        >>> tagger(torch.randn(4, 3, 8, 8)).shape
        torch.Size([4, 7])
    """
    copied = copy.deepcopy(network).eval()  # batch norms must not see the probe
    backbone = InnerFeatures(copied, at, probe)
    with torch.no_grad():
        feature = backbone(probe)
    if feature.ndim not in (3, 4):
        raise ValueError(
            f"module {at!r} returns shape {tuple(feature.shape)}, expected maps (N, F, H, W) or tokens (N, T, F): name "
            "an earlier module, before the mean over positions"
        )
    channels = feature.shape[1] if feature.ndim == 4 else feature.shape[2]
    tagger = LabelQueryNetwork(
        backbone, channels, classes=classes, width=width, heads=heads, hidden=hidden, dropout=dropout
    )
    return tagger.train()


def label_queries_in(network: nn.Module) -> list[str]:
    """Dotted names, as `Taps` takes them, of the `LabelQueries` modules inside a network, wrapped or not.

    Args:
        network: any module.

    Raises:
        TypeError: nothing in it can be tapped (a function, a cache).
    """
    return [name for name, module in modules_by_name(tap_root(network)).items() if isinstance(module, LabelQueries)]
