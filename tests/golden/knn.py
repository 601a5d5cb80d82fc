"""Classifies and measures random features in PyTorch, for crates/trainer/src/knn.rs and spectrum.rs.

    python tests/golden/knn.py

writes tests/golden/knn.safetensors. Written with torch 2.15.0, in float64 on float32 features. The seed is one for
which no decision hangs on rounding: see the assertions.
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

BANK, QUERIES, WIDTH, CLASSES = 320, 60, 12, 7
NEIGHBOURS, TEMPERATURE = 200, 0.07


def by_rule(labels):
    """Half as many neighbours as a class that occurs has rows, on average."""
    return min(NEIGHBOURS, max(1, len(labels) // (2 * len(labels.unique()))))


def predict(queries, bank, labels, itself, k=NEIGHBOURS):
    """The weighted vote of Wu et al. 2018, section 3.4."""
    similarity = queries @ bank.T
    if itself:
        similarity.fill_diagonal_(-torch.inf)
    k = min(k, len(bank) - itself)
    nearest = similarity.topk(min(k + 1, len(bank)), dim=1)
    if k < len(bank):
        assert (nearest.values[:, k - 1] - nearest.values[:, k]).min() > 1e-6, "which rows vote hangs on rounding"
    weights = (nearest.values[:, :k] / TEMPERATURE).exp()
    votes = torch.zeros(len(queries), CLASSES, dtype=torch.float64)
    votes.scatter_add_(1, labels[nearest.indices[:, :k]], weights)
    best = votes.topk(2, dim=1).values
    assert (best[:, 1] / best[:, 0]).max() < 1 - 1e-4, "which class wins hangs on rounding"
    return votes.argmax(dim=1)


def spread(unit):
    centred = unit - unit.mean(dim=0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / len(unit)).clamp(min=0)
    shares = eigenvalues / eigenvalues.sum()
    rank = torch.special.entr(shares).sum().exp()
    return torch.stack([unit.std(dim=0, correction=0).mean(), rank])


def main():
    generator = torch.Generator().manual_seed(4)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    # Classes overlap, and directions differ in how much they are used.
    centres = normal(CLASSES, WIDTH)
    scale = torch.linspace(0.3, 2.0, WIDTH)
    draw = lambda labels: (centres[labels] * 0.8 + normal(len(labels), WIDTH)) * scale
    labels = torch.randint(CLASSES, (BANK,), generator=generator)
    query_labels = torch.randint(CLASSES, (QUERIES,), generator=generator)
    bank, queries = draw(labels), draw(query_labels)

    unit_bank, unit_queries = (F.normalize(x.double(), dim=1) for x in (bank, queries))
    predicted = predict(unit_queries, unit_bank, labels, itself=False)
    left_out = predict(unit_bank, unit_bank, labels, itself=True)
    print("top1", (predicted == query_labels).double().mean().item(), (left_out == labels).double().mean().item())
    cases = {}
    for name, rows, k in [
        ("rule", torch.arange(BANK), None),
        ("rule_of_few", torch.arange(40), None),
        ("rule_without_a_class", torch.nonzero(labels != 3).squeeze(1), None),
        ("nearest", torch.arange(BANK), 1),
        ("explicit", torch.arange(BANK), 7),
        ("explicit_of_few", torch.arange(40), 500),
    ]:
        k = k or by_rule(labels[rows])
        some, of_some = unit_bank[rows], labels[rows]
        cases |= {
            f"{name}.k": torch.tensor([k]),
            f"{name}.rows": rows,
            f"{name}.predicted": predict(unit_queries, some, of_some, itself=False, k=k),
            f"{name}.left_out": predict(some, some, of_some, itself=True, k=k),
        }
        print(name, k, (cases[f"{name}.left_out"] == of_some).double().mean().item())
    save_file(
        {
            **cases,
            "bank": bank,
            "labels": labels,
            "queries": queries,
            "predicted": predicted,
            "left_out": left_out,
            "spread": spread(unit_bank),
        },
        pathlib.Path(__file__).with_suffix(".safetensors"),
    )


main()
