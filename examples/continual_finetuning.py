"""A small GPT-2 that is trained on one domain after another, as a model that is kept up to date.

Each domain is a language of its own: a random rule by which one token follows the two before it. Printed is what the
model loses against the rule itself (cross-entropy less the rule's entropy, in nats) when its time on a domain is up,
of AdamW alone and with spectral regularization. It shows where the line goes, and not that it is needed: in so few
steps neither loses its plasticity, and the two differ little.

python examples/continual_finetuning.py          # 5 domains of 200 steps: one minute on one core
python examples/continual_finetuning.py 3 60
"""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import supple

TOKENS, LENGTH, BATCH = 8, 24, 16


class Domain:
    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.rule = (3 * torch.randn(TOKENS, TOKENS, TOKENS, generator=self.random)).softmax(-1)

    def batch(self) -> tuple[torch.Tensor, float]:
        """Sentences ``(BATCH, LENGTH)``, and the rule's own mean entropy on them."""
        words = list(torch.randint(TOKENS, (2, BATCH), generator=self.random))
        entropies = []
        for _ in range(LENGTH - 2):
            following = self.rule[words[-2], words[-1]]
            words.append(torch.multinomial(following, 1, generator=self.random).squeeze(1))
            entropies.append(-(following * following.log()).sum(-1).mean())
        return torch.stack(words, 1), torch.stack(entropies).mean().item()


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=TOKENS, n_positions=LENGTH, n_embd=48, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def train(domains: int, steps: int, strength: float) -> list[float]:
    """The loss above the rule's entropy at each domain's end."""
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    supple.SpectralRegularizer(network, strength=strength).attach(optimizer)
    excess = []
    for seed in range(domains):
        domain = Domain(seed)
        last = []
        for step in range(steps):
            words, entropy = domain.batch()
            labels = words.masked_fill(torch.arange(LENGTH) < 2, -100)  # the first two follow no rule
            loss = network(input_ids=words, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if step >= 0.9 * steps:
                last.append(loss.item() - entropy)
        excess.append(sum(last) / len(last))
    return excess


def main(domains: int = 5, steps: int = 200) -> dict[str, list[float]]:
    results = {
        "AdamW": train(domains, steps, strength=0.0),
        "AdamW and spectral": train(domains, steps, strength=1e-4),
    }
    print("loss above the rule's entropy at each domain's end")
    for name, excess in results.items():
        print(f"{name:18}", *(f"{value:6.3f}" for value in excess))
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
