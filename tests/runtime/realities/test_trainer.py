"""The Trainer of transformers with a governor in its training step: signals are measured and guards act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradwarden.policy.known_signals import KNOWN_SIGNALS
from gradwarden.runtime import Governor, Measuring

pytestmark = pytest.mark.soak
transformers = pytest.importorskip("transformers")

DECLARED = "".join(f"{signal.declaration}\n" for signal in KNOWN_SIGNALS)
READ = "".join(f"advisory memorization m_{s.name} {{ when {s.name} > 1  refuse }}\n" for s in KNOWN_SIGNALS)

POLICY = f"""policy p version 1 language 1
examples {{ kind : one of a }}
model {{ shallow = top 50%  deep = rest }}
depth all {{ reach all }}
signals {{
{DECLARED}}}
{READ}
memorization again {{ when comings > epoch  refuse }}
"""

TEXTS, DISTINCT, EPOCHS = 16, 12, 3


class Taken(torch.optim.Optimizer):
    """What the Trainer is given for an optimizer: the governor has made the step when its turn comes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups[0]["params"], {})
        self.param_groups = optimizer.param_groups

    def step(self, closure: Any = None) -> None:
        return None

    def zero_grad(self, set_to_none: bool = True) -> None:
        return None


def governed(governor: Governor) -> Any:
    """Return a Trainer whose training step is the governor's."""

    class Governed(transformers.Trainer):  # type: ignore[misc,name-defined]
        def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
            model.train()
            governor.epoch = int(self.state.epoch or 0)
            examples = [{"id": f"t{row}", "kind": "a"} for row in inputs.pop("row").tolist()]
            with governor.step(examples) as proposal:
                logits, targets = model(**inputs).logits[:, :-1], inputs["input_ids"][:, 1:]
                each = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)
                proposal.observe_tokens(logits, targets)
                proposal.backward(each)
            return each.mean().detach()

    return Governed


def test_signals_are_measured_and_a_guard_stops_copies(lab: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    clusters = {f"t{row}": f"c{row % DISTINCT}" for row in range(TEXTS)}
    governor = lab.governor(POLICY, model, optimizer, measuring=Measuring(every=1, clusters=clusters))
    words = [torch.randint(32, (12,), generator=torch.Generator().manual_seed(n)) for n in range(DISTINCT)]
    texts = [{"row": row, "input_ids": words[row % DISTINCT]} for row in range(TEXTS)]
    settings = transformers.TrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=4, num_train_epochs=EPOCHS, max_grad_norm=0.0,
        remove_unused_columns=False, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    before = [parameter.clone() for parameter in model.parameters()]
    trainer = governed(governor)(
        model=model, args=settings, train_dataset=texts, optimizers=(Taken(optimizer), schedule)
    )
    trainer.train()
    assert governor.committed == EPOCHS * TEXTS // 4
    assert any(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    rows = governor.roster.rows([f"t{row}" for row in range(TEXTS)])
    measured = {name: values.tolist() for name, values in governor.measures.signals(rows).items()}
    repeated = TEXTS - DISTINCT
    assert measured["comings"][:DISTINCT] == [2 * EPOCHS] * repeated + [EPOCHS] * (DISTINCT - repeated)
    assert all(exposed == EPOCHS for exposed in measured["copies"][repeated:DISTINCT])
    assert all(0.0 < share < 1.0 for share in measured["depth_share"][repeated:DISTINCT])
    governor.close()
    report = lab.verify()
    assert report.ok
    assert report.facts["rules"]["enforced"]["again"] >= repeated * EPOCHS
